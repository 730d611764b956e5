"""IDX files, the format of MNIST: a file of images, and one of their labels beside it, perhaps gzipped."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np


def is_images(path: Path) -> bool:
    """Whether a file's name is that of images, such as train-images-idx3-ubyte.gz."""
    return path.name.removesuffix(".gz").endswith("idx3-ubyte")


def read(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array of so many dimensions in a file. Raises ValueError for any other contents."""
    content = (gzip.decompress if path.suffix == ".gz" else bytes)(path.read_bytes())
    if content[:4] != bytes((0, 0, 8, dimensions)):  # 8: bytes
        raise ValueError(f"it does not begin as bytes in {dimensions} dimensions do")
    shape = np.frombuffer(content, ">u4", dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


def labels(images: Path, count: int) -> np.ndarray:
    """The labels (count,) of a file of images, zeros if none are beside it. Raises ValueError."""
    name = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    beside = [path for path in (images.with_name(name), images.with_name(f"{name}.gz")) if path.exists()]
    found = read(beside[0], 1) if beside else np.zeros(count, np.uint8)
    if len(found) != count:
        raise ValueError(f"{len(found)} labels for {count} images")
    return found
