"""Images as users keep them: files in folders, ZIP and tar archives, Parquet and IDX files."""

from __future__ import annotations

import gzip
import io
import struct
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def encoded(pixels: object, form: str = "PNG", **options: object) -> bytes:
    """The bytes of an image file with these pixels (H, W[, C]), or 8x8 pixels of one grey level."""
    array = np.full((8, 8), pixels) if np.isscalar(pixels) else np.asarray(pixels)
    buffer = io.BytesIO()
    Image.fromarray(array if array.dtype in (np.uint16, np.float32) else array.astype(np.uint8)).save(
        buffer, form, **options
    )
    return buffer.getvalue()


def put(files: dict[str, int | bytes], folder: str = "set") -> Path:
    """Writes files below a folder, given as bytes or as the grey level of an image."""
    for name, content in files.items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else encoded(content))
    return Path(folder)


def as_zip(files: dict[str, int | bytes], path: str = "set.zip") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content if isinstance(content, bytes) else encoded(content))
    return Path(path)


def as_tar(files: dict[str, int | bytes], path: str = "set.tar", mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            content = content if isinstance(content, bytes) else encoded(content)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return Path(path)


def as_parquet(path: str, **columns: list) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return Path(path)


def as_idx(path: str, array: np.ndarray) -> Path:
    """An IDX file of bytes, written by the description of the format (yann.lecun.com/exdb/mnist)."""
    content = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.astype(np.uint8).tobytes()
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(gzip.compress(content) if path.endswith(".gz") else content)
    return Path(path)
