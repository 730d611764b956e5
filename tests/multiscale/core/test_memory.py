"""Memory that is freed is there for the next block of its size, without a page fault."""

from __future__ import annotations

import ctypes
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from multiscale.core import memory

C = ctypes.CDLL(None)
BLOCK, HUGE = 2**26, 2**21  # bytes; by itself glibc returns every block of this size, of pages of up to 2 MiB


def faults() -> int:
    """The page faults of a block that is made, written and freed."""
    C.malloc.restype, C.malloc.argtypes, C.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = C.malloc(BLOCK)
    ctypes.memset(block, 1, BLOCK)
    C.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def of_blocks() -> None:
    """Prints the page faults of a block, returned to the system and then kept."""
    assert memory.allocate(mapped_from=2**17, kept=2**17)  # where glibc starts
    returned = min(faults(), faults())
    memory.keep_freed_memory()
    faults()
    print(returned, faults())


@pytest.mark.skipif(not hasattr(C, "mallopt"), reason="not glibc")
def test_freed_memory_is_kept():
    """In a process of its own, whose heap has no room for a block."""
    call = [sys.executable, "-c", "import test_memory; test_memory.of_blocks()"]
    done = subprocess.run(call, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    returned, kept = map(int, done.stdout.split())
    assert returned >= BLOCK // HUGE and kept < returned / 10


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    memory.keep_freed_memory()
    assert not memory.allocate(mapped_from=2**17, kept=2**17)
