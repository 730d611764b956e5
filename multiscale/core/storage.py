"""Atomic files and folders, and memory-mapped tensors that need not fit in memory (safetensors)."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from multiscale.core import intact
from multiscale.core.temporary import remove_left, temporary_name

DTYPES = {"F16": np.float16, "F32": np.float32, "U8": np.uint8, "I64": np.int64}
CHECKSUM = "checksum"  # key of JSON
_NAMES = {np.dtype(dtype): name for name, dtype in DTYPES.items()}


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _plain_errors(path: Path) -> Iterator[None]:
    """Raises an OSError for a full disk: safetensors hides it in an exception of its own."""
    try:
        yield
    except SafetensorError as error:
        if not (found := re.search(r"os error (\d+)", str(error))):
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1])), str(path)) from error


def _check_kind(path: Path, folder: bool) -> None:
    """Raises OSError where a file is in the place of a folder, or the reverse."""
    if path.exists() and path.is_dir() != folder:
        code = errno.ENOTDIR if folder else errno.EISDIR
        raise OSError(code, os.strerror(code), str(path))


def check_place(path: Path, folder: bool) -> None:
    """Raises OSError where a folder, or a file, could not be written: asked before the work whose result it is."""
    _check_kind(path, folder)
    _check_kind(around := next(each for each in path.parents if each.exists()), folder=True)
    tempfile.TemporaryFile(dir=around).close()


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on success the file is synced and renamed, otherwise removed.

    Temporary files of killed processes are removed.
    """
    path = Path(path)
    _check_kind(path, folder=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_left(path.parent, path.name)
    temporary = path.with_name(temporary_name(path.name))
    try:
        with _plain_errors(path):
            yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `path`; on success its files are synced and it is renamed.

    Until then an older folder stays in place. Temporary folders of killed processes are removed.
    """
    path = Path(path)
    _check_kind(path, folder=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_left(path.parent, path.name)
    temporary = path.with_name(temporary_name(path.name))
    older = path.with_name(temporary_name(path.name, ".old"))
    temporary.mkdir()
    try:
        with _plain_errors(path):
            yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb+") as opened:
                    os.fsync(opened.fileno())
        if path.exists():
            os.replace(path, older)  # deleting it in place could be interrupted halfway
        os.replace(temporary, path)
        _sync_folder(path.parent)
    finally:
        for folder in (temporary, older):
            shutil.rmtree(folder, ignore_errors=True)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_files(paths: Iterable[Path]) -> str:
    """SHA-256 of the contents of files, in the given order."""
    total = hashlib.sha256()
    for path in paths:
        total.update(bytes.fromhex(sha256_of(path)))
    return total.hexdigest()


@contextmanager
def sealed_folder(path: Path) -> Iterator[Path]:
    """An `atomic_folder` that lists the checksums of its files; see `multiscale.core.intact`."""
    with atomic_folder(path) as folder:
        yield folder
        intact.seal_folder(folder)


def write_text(path: Path, text: str) -> None:
    """Writes text atomically."""
    with atomic_file(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, value: object) -> None:
    """Writes indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_sealed_json(path: Path, value: Mapping[str, object]) -> None:
    """Writes indented JSON atomically, with its checksum as the last key."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps({**value, CHECKSUM: intact.BLANK}, indent=2) + "\n")
        intact.seal_file(temporary)


def read_sealed_json(path: Path) -> dict[str, Any]:
    """Reads what `write_sealed_json` wrote. Raises Damaged."""
    intact.check_file(path)
    return _unsealed(Path(path).read_bytes())


def parse_sealed_json(content: bytes, path: Path) -> dict[str, Any]:
    """The same of the content of a file that is elsewhere; errors name `path`. Raises Damaged."""
    intact.check_opened(io.BytesIO(content), path)
    return _unsealed(content)


def _unsealed(content: bytes) -> dict[str, Any]:
    return {key: value for key, value in json.loads(content).items() if key != CHECKSUM}


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object."""
    found: dict[str, Any] = json.loads(Path(path).read_text())
    return found


class TensorWriter:
    """Writes a safetensors file block by block, so that a dataset need not fit in memory.

    shapes: name -> (dtype, (N, ...)). Use it inside `atomic_file`. Rows that are not written stay zero.
    """

    def __init__(
        self, path: Path, shapes: Mapping[str, tuple[type, tuple[int, ...]]], metadata: dict[str, str] | None = None
    ):
        header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
        starts, offset = {}, 0
        for name, (dtype, shape) in shapes.items():
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            starts[name] = offset
            header[name] = {"dtype": _NAMES[np.dtype(dtype)], "shape": shape, "data_offsets": [offset, offset + size]}
            offset += size
        encoded = json.dumps(header).encode()
        encoded += b" " * (-len(encoded) % 8)
        with open(path, "wb") as file:
            file.write(len(encoded).to_bytes(8, "little") + encoded)
            # Reserves the space now: if the disk were full later, a mapped page would kill the process.
            os.posix_fallocate(file.fileno(), 0, 8 + len(encoded) + offset)
        self._mapped, begin = np.memmap(path, np.uint8, "r+"), 8 + len(encoded)
        self.arrays = {
            name: _view(self._mapped, np.dtype(dtype), begin + starts[name], shape)
            for name, (dtype, shape) in shapes.items()
        }

    def write(self, name: str, start: int, rows: Tensor) -> None:
        """Writes rows (n, ...) at positions start .. start+n-1 of a tensor."""
        self.arrays[name][start : start + len(rows)] = rows.numpy()

    def close(self) -> None:
        """Flushes the mapped pages to the file."""
        self._mapped.flush()


def write_blocks(
    path: Path,
    shapes: Mapping[str, tuple[type, tuple[int, ...]]],
    blocks: Iterable[Mapping[str, Tensor]],
    reach: Callable[[int], None] = lambda done: None,
) -> None:
    """Writes blocks of rows, name -> (n, ...), one after the other with `TensorWriter`; reports the rows so far."""
    writer, done = TensorWriter(path, shapes), 0
    for block in blocks:
        for name, rows in block.items():
            writer.write(name, done, rows)
        done += len(rows)
        reach(done)
    writer.close()


def _view(mapped: np.memmap, dtype: np.dtype, start: int, shape: tuple[int, ...]) -> np.ndarray:
    """An array in a mapped file, from a byte on; one map a file, since a process may have 65,530."""
    size = math.prod(shape) * dtype.itemsize
    return np.ndarray(shape, dtype, mapped[start : start + size])


def _mapped(path: Path, names: tuple[str, ...]) -> dict[str, np.ndarray]:
    mapped = np.memmap(path, np.uint8, "r")
    start = 8 + int.from_bytes(mapped[:8].tobytes(), "little")
    header = json.loads(mapped[8:start].tobytes())
    return {
        name: _view(mapped, np.dtype(DTYPES[entry["dtype"]]), start + entry["data_offsets"][0], entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__" and (not names or name in names)
    }


def shards_in(folder: Path) -> list[Path]:
    """The shards of a table, in the order of their numbers: 99999, 100000."""
    return sorted(folder.glob("*.safetensors"), key=lambda path: (len(path.name), path.name))


class Shards:
    """Mapped arrays (n, ...), read as one (N, ...), one behind the other."""

    def __init__(self, arrays: list[np.ndarray]):
        self.ends = np.cumsum([len(array) for array in arrays])
        self._arrays, self.dtype = arrays, arrays[0].dtype
        self.shape: tuple[int, ...] = (int(self.ends[-1]), *arrays[0].shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        """The rows (n,) as an array (n, ...) in memory."""
        chosen = np.arange(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        found = np.empty((len(chosen), *self.shape[1:]), self.dtype)
        shards = self.shards_of(chosen)
        for shard in np.unique(shards):
            places = np.flatnonzero(shards == shard)
            found[places] = self._arrays[shard][chosen[places] - self.ends[shard]]  # from its end
        return found

    def shards_of(self, rows: np.ndarray) -> np.ndarray:
        """The shard (n,) of each row."""
        return np.searchsorted(self.ends, rows, "right")

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        return self[slice(None)]


class Table:
    """Memory-mapped tensors of one length N; `table[rows]` reads those rows alone: name -> Tensor (n, ...).

    Floats come as float32. Raises ValueError for tensors of different lengths.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray | Shards]):
        lengths = {len(array) for array in arrays.values()}
        if len(lengths) != 1:
            raise ValueError(f"tensors of one table differ in length: { {k: len(v) for k, v in arrays.items()} }")
        self.arrays: Mapping[str, Any] = arrays
        self._length = lengths.pop()

    @classmethod
    def open(cls, path: Path, *names: str) -> Table:
        """Maps the named tensors (default: all) of a safetensors file, or of a folder of shards in their order."""
        if path.is_dir():
            shards = [_mapped(shard, names) for shard in shards_in(path)]
            return cls({name: Shards([shard[name] for shard in shards]) for name in shards[0]})
        return cls(_mapped(path, names))

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, rows: Tensor | slice) -> dict[str, Tensor]:
        index = rows.numpy() if isinstance(rows, Tensor) else rows
        batch = {name: torch.from_numpy(np.array(array[index])) for name, array in self.arrays.items()}
        return {name: x.float() if x.is_floating_point() else x for name, x in batch.items()}


def metadata_of(path: Path) -> dict[str, str]:
    """The text metadata of a safetensors file."""
    with safe_open(path, "pt") as file:
        return file.metadata() or {}
