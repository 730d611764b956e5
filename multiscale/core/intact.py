"""Files and folders that tell whether they are still as they were written.

A folder lists the CRC-32 of its files in `checksums.json`. A file that is alone (Parquet, JSON, a checkpoint) holds its
own, computed with zeros in the place of its digits, as the header of a tar does. This finds what disks and copies do,
not what people mean to do. zlib computes 2 GB/s on one core, about what a fast disk reads.
"""

from __future__ import annotations

import errno
import json
import os
import zlib
from pathlib import Path
from typing import BinaryIO

LIST = "checksums.json"
BLANK = "crc32:00000000"  # stands once in a file that is to be sealed, near its start or its end
MARK, DIGITS = b"crc32:", 8
EDGE = 1 << 20  # bytes at the start and the end of a file in which the mark is looked for


class Damaged(ValueError):
    """A file or folder that is not as it was written; `path`, and `why` in a few words."""

    def __init__(self, path: Path, why: str):
        super().__init__(path, why)  # both, so that a worker can send it
        self.path, self.why = path, why

    def __str__(self) -> str:
        return f"{self.path}: {self.why}"


def seal_file(path: Path) -> None:
    """Puts the CRC-32 of a file in the place of `BLANK`."""
    with open(path, "rb+") as file:
        place = _place(file, path)
        digits = _digits(file, place)
        file.seek(place)
        file.write(digits)


def seal_folder(folder: Path) -> None:
    """Lists the files of a folder, at any depth, in its `checksums.json`."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    listed = {path.relative_to(folder).as_posix(): _crc_of(path) for path in files}
    (folder / LIST).write_text(json.dumps(listed, indent=1) + "\n")


def check(*paths: Path) -> None:
    """Reads sealed files and folders once. Raises Damaged, or FileNotFoundError for one that is not there."""
    for path in map(Path, paths):
        check_folder(path) if path.is_dir() else check_file(path)


def check_file(path: Path) -> None:
    """Raises Damaged unless a file has the CRC-32 that it holds, FileNotFoundError if it is not there."""
    try:
        with open(path, "rb") as file:
            check_opened(file, path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Damaged(path, f"cannot be read ({error.strerror})") from None


def check_opened(file: BinaryIO, path: Path) -> None:
    """Raises Damaged, for this path, unless an open file or a buffer has the CRC-32 that it holds."""
    place = _place(file, path)
    file.seek(place)
    told = file.read(DIGITS)
    if told != _digits(file, place):
        raise Damaged(path, "damaged: it does not have the checksum that it holds")


def check_folder(folder: Path, *names: str) -> None:
    """Raises Damaged unless files of a folder, all by default, are as they are listed; ignores files beside them.

    Raises FileNotFoundError if the folder is not there.
    """
    if not folder.exists():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    try:
        listed = json.loads((folder / LIST).read_bytes())
    except FileNotFoundError:
        raise Damaged(folder, f"holds no {LIST}") from None
    except OSError as error:
        raise Damaged(folder, f"cannot be read ({error.strerror})") from None
    except ValueError:
        listed = None
    if not isinstance(listed, dict):
        raise Damaged(folder / LIST, "damaged: not JSON that was written here")
    for name in names or listed:
        path = folder / name
        try:
            found = _crc_of(path)
        except FileNotFoundError:
            raise Damaged(path, "missing, though it was written") from None
        except OSError as error:
            raise Damaged(path, f"cannot be read ({error.strerror})") from None
        if found != listed.get(name):
            raise Damaged(path, f"damaged: it does not have the checksum in {LIST}")


def _place(file: BinaryIO, path: Path) -> int:
    """Where the digits are: near the end in Parquet and JSON, near the start in safetensors."""
    start = max(0, file.seek(0, os.SEEK_END) - EDGE)
    file.seek(start)
    found = file.read().rfind(MARK)
    if found < 0:
        start = 0
        file.seek(start)
        found = file.read(EDGE).find(MARK)
    if found < 0:
        raise Damaged(path, "damaged, or not written here: it holds no checksum")
    return start + found + len(MARK)


def _digits(file: BinaryIO, place: int) -> bytes:
    """The CRC-32 of a file with zeros from `place` on, as digits."""
    file.seek(0)
    before = _crc(file, place)
    file.seek(DIGITS, os.SEEK_CUR)
    return b"%08x" % _crc(file, -1, zlib.crc32(b"0" * DIGITS, before))


def _crc_of(path: Path) -> str:
    with open(path, "rb") as file:
        return f"{_crc(file):08x}"


def _crc(file: BinaryIO, count: int = -1, before: int = 0) -> int:
    """The CRC-32 of the next bytes, all by default, after those of which it is `before`."""
    while block := file.read(min(count, EDGE) if count >= 0 else EDGE):
        before = zlib.crc32(block, before)
        count -= len(block) if count >= 0 else 0
    return before
