"""The memory allocator of this process."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>


def keep_freed_memory() -> None:
    """Keeps freed memory in this process, where it uses glibc; no result depends on it.

    By default glibc returns large blocks to the kernel, which clears their pages again when the next layer asks for
    them. On a CPU that takes half of the time of a convolutional network with a large batch.
    """
    if not allocate(mapped_from=2**30, kept=2**30):
        allocate(mapped_from=2**25, kept=2**30)  # before 2.35 glibc takes no more


def allocate(mapped_from: int, kept: int) -> bool:
    """Sets the bytes from which glibc maps a block by itself, and those that its heap keeps; whether it did."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc has it, other C libraries do not
    return mallopt is not None and bool(mallopt(M_TRIM_THRESHOLD, kept) and mallopt(M_MMAP_THRESHOLD, mapped_from))
