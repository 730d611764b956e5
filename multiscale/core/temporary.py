"""Names for what is there only while a process works on it, and what is left of it when that process is killed."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path


def temporary_name(name: str, kind: str = "") -> str:
    """The name of a file or folder that is there only while this process works on it; git and DVC ignore it."""
    return f".{name}.{os.getpid()}{kind}.tmp"


def is_left(path: Path, name: str | None = None) -> bool:
    """Whether a path has a temporary name, of `name` or of any, and the process that gave it is gone.

    This process asks before it gives one: its own number stands for one that had it before.
    """
    given = ".*" if name is None else re.escape(name)
    found = re.fullmatch(rf"\.{given}\.(\d+)(\.old)?\.tmp", path.name)
    if not found or int(found[1]) == os.getpid():
        return bool(found)
    try:
        os.kill(int(found[1]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        pass  # somebody else's
    return False


def remove_left(folder: Path, name: str | None = None) -> None:
    """Removes what processes that were killed have left in a folder under temporary names, of `name` or of any."""
    for left in [path for path in folder.glob(".*.tmp") if is_left(path, name)]:
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file that is whole at any moment; unlike `storage.atomic_file` it does not wait for the disk."""
    remove_left(path.parent, path.name)
    temporary = path.with_name(temporary_name(path.name))
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    temporary.replace(path)
