"""Archives of images: a zip is read member by member, a tar unpacked; neither may do harm."""

from __future__ import annotations

import bz2
import copy
import lzma
import shutil
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path, PurePath, PurePosixPath
from typing import IO

import polars as pl
import pyarrow as pa
from backports import tarfile  # Python before 3.11.4 has no safe filter

from multiscale.core import intact
from multiscale.core.storage import sealed_folder, sha256_of
from multiscale.core.temporary import remove_left, temporary_name
from stages.common.errors import BadInput, one_line, refuse
from stages.common.harness import is_disk_full
from stages.common.paths import EXPERIMENT, SCRATCH

LARGEST_FILE = 1 << 28  # bytes of a zip's member, which is read whole
LARGEST_HEADER = 1 << 20  # bytes of a tar's member before its content: a name, and what a system adds to it
MOST_TIMES = 100  # its size, a tar may have unpacked: no images shrink so
LEAST_OF_FILE = 1 << 12  # bytes that a file takes, even an empty one
DEEPEST = 100  # folders within folders: deeper ones are a mistake or an attack, and end in limits of the system
UNPACKED = Path(SCRATCH, "unpacked")  # /DIGEST
_in_use: set[Path] = set()  # folders in UNPACKED that this process reads
DAMAGED: tuple[type[Exception], ...] = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError)
DAMAGED += (OSError, pa.ArrowInvalid, pl.exceptions.PolarsError, NotImplementedError, UnicodeDecodeError)


def refuse_path(path: PurePath, allowed: str) -> BadInput:
    """The error for a place that `data.path` leads to."""
    return refuse(EXPERIMENT, "data.path", str(path), allowed)


@contextmanager
def whole(path: Path) -> Iterator[None]:
    """Turns the errors of readers on damaged or malicious files into BadInput."""
    if not path.is_file():
        raise refuse_path(path, "a regular file")  # reading from a pipe would never end
    try:
        yield
    except DAMAGED as error:
        if is_disk_full(error):
            raise
        raise refuse_path(path, f"a file that is intact ({one_line(error)})") from None


def check_depth(name: PurePath, place: Path) -> None:
    """Raises BadInput for a name in too many folders."""
    if len(name.parts) > DEEPEST:
        raise refuse_path(place, f"folders and archives that are at most {DEEPEST} levels deep")


def members(path: Path) -> dict[str, Callable[[], bytes]]:
    """The members of a zip: name -> reader. Nothing is unpacked, so no member can escape a folder."""
    _opened.cache_clear()
    archive = _opened(path)
    found = archive.infolist()
    with open(path, "rb") as file:
        claimed = zipfile._EndRecData(file)[zipfile._ECD_ENTRIES_TOTAL]  # type: ignore[attr-defined]  # else nobody counts
    if (len(found) - claimed) % 65536:  # some writers keep 16 bits of the number
        raise zipfile.BadZipFile(f"it holds {len(found)} files, and claims {claimed}")
    for name, count in Counter(archive.namelist()).items():
        if count > 1:
            raise refuse_path(path / name, "names that are there once in a zip")
    for member in found:
        if member.file_size > LARGEST_FILE:
            raise refuse_path(path / member.filename, f"files of at most {LARGEST_FILE >> 20} MB in a zip")
    return {name: partial(_member, path, name) for name in archive.namelist()}


def check_names(path: Path, names: Iterable[str]) -> None:
    """Raises BadZipFile where members of a zip, which nobody reads, have another name in their own header."""
    for name in names:
        with suppress(RuntimeError), _opened(path).open(name):  # it may be encrypted
            pass


@cache
def _opened(path: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(path)


def _member(path: Path, name: str) -> bytes:
    """What a member holds, of which no more is unpacked than it claims: its checksum finds that this is not all."""
    archive = _opened(path)
    member = archive.getinfo(name)
    if member.compress_type not in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with archive.open(member) as file:
            return file.read(member.file_size)
    raw = copy.copy(member)  # the library unpacks these before it counts
    raw.compress_type, raw.file_size, raw.CRC = zipfile.ZIP_STORED, member.compress_size, None  # type: ignore[assignment]
    with archive.open(raw) as file:
        packed = file.read(LARGEST_FILE)
    if member.compress_type == zipfile.ZIP_BZIP2:
        content = bz2.BZ2Decompressor().decompress(packed, member.file_size)
    else:  # a zip has another header, without the size, before the same stream
        alone = lzma.LZMADecompressor(lzma.FORMAT_ALONE, LARGEST_FILE)
        content = alone.decompress(packed[4:9] + b"\xff" * 8 + packed[9:], member.file_size)
    if zlib.crc32(content) != member.CRC:
        raise zipfile.BadZipFile(f"Bad CRC-32 for file {name!r}")
    return content


class _Header:
    """The file of a tar while a header is read, which the library does whole, however large it is and however deep."""

    def __init__(self, file: IO[bytes]):
        self.tell, self._read, self._left = file.tell, file.read, LARGEST_HEADER

    def read(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise tarfile.TarError(f"a header of more than {LARGEST_HEADER >> 20} MB")
        return self._read(size)


class _Member(tarfile.TarInfo):  # type: ignore[misc]  # the backport has no types
    """A member of a tar whose header must be whole: the library takes a damaged one, or none, for the end."""

    @classmethod
    def fromtarfile(cls, archive: tarfile.TarFile) -> tarfile.TarInfo:
        file, archive.fileobj = archive.fileobj, _Header(archive.fileobj)
        try:
            return super().fromtarfile(archive)
        except tarfile.EOFHeaderError:  # zeros, as behind the last member
            rest = file.read(tarfile.RECORDSIZE + 1)  # to its end, where a stream has its checksum
            if any(rest) or len(rest) > tarfile.RECORDSIZE:
                about = f"cut or damaged behind byte {archive.offset}: more follows than its end"
                raise tarfile.ReadError(about) from None
            raise
        except (tarfile.HeaderError, ValueError, RecursionError) as error:
            raise tarfile.ReadError(f"cut or damaged behind byte {archive.offset}: {error}") from None
        finally:
            archive.fileobj = file


def is_tar(path: Path) -> bool:
    """Whether a file is a tar. Raises TarError where its first header is an attack."""
    try:
        tarfile.open(path, tarinfo=_Member).close()
    except tarfile.ReadError:
        return False
    return True


def unpacked(path: Path) -> Path:
    """The folder in .scratch that holds the files of a tar, unpacked there unless they are there already."""
    folder = UNPACKED / sha256_of(path)[:16]
    remove_left(UNPACKED)  # folders of other archives stay: another process may read them
    if folder.exists():
        intact.check(folder)
    else:
        with sealed_folder(folder) as temporary, tarfile.open(path, tarinfo=_Member) as archive:
            size, most = 0, max(LARGEST_FILE, MOST_TIMES * path.stat().st_size)
            for member in archive:
                check_depth(PurePosixPath(member.name), path)
                size += member.size + LEAST_OF_FILE
                if size > most:
                    raise refuse_path(path, f"a tar whose files take at most {MOST_TIMES} times its own size")
            try:
                archive.extractall(temporary, filter="data")
            except KeyError as error:  # for a hard link
                raise tarfile.ReadError(*error.args) from None
    _in_use.add(folder)
    return folder


def remove_unpacked() -> None:
    """Removes what this process has unpacked, or found unpacked, once nothing reads it any more."""
    for folder in _in_use:
        with suppress(FileNotFoundError):  # another process has read the same tar, and ended before
            gone = folder.rename(folder.with_name(temporary_name(folder.name)))  # half of it would count as damaged
            shutil.rmtree(gone, ignore_errors=True)
    _in_use.clear()
