"""IDX files, the format of MNIST: a file of images, and one of their labels beside it, perhaps gzipped."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import numpy as np

LARGEST = 1 << 30  # bytes of a file once it is unpacked; the largest set of this kind, EMNIST, takes 640 MB


def is_images(path: Path) -> bool:
    """Whether a file's name is that of images, such as train-images-idx3-ubyte.gz."""
    return path.name.removesuffix(".gz").endswith("idx3-ubyte")


def without_copies(paths: list[Path]) -> list[Path]:
    """The files without a .gz beside what was unpacked from it, which would give each image twice."""
    return [path for path in paths if path.suffix != ".gz" or path.with_suffix("") not in paths]


def read(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array of so many dimensions in a file. Raises ValueError for any other contents."""
    if not path.is_file():
        raise ValueError(f"{path.name} is no file")  # reading from a pipe would never end
    with gzip.open(path) if path.suffix == ".gz" else open(path, "rb") as file:
        if file.read(4) != bytes((0, 0, 8, dimensions)):  # 8: bytes
            raise ValueError(f"it does not begin as bytes in {dimensions} dimensions do")
        shape = np.frombuffer(file.read(4 * dimensions), ">u4", dimensions).tolist()
        size = math.prod(shape)
        if size > LARGEST:
            raise ValueError(f"it claims {size} bytes, at most {LARGEST} are read")
        content = file.read(size + 1)
    if len(content) != size:
        raise ValueError(f"it holds {'more' if len(content) > size else 'fewer'} bytes than the {size} of its header")
    return np.frombuffer(content, np.uint8).reshape(shape)


def labels_beside(images: Path) -> Path | None:
    """The file of the labels of a file of images; None: there is none."""
    name = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    return next((path for path in (images.with_name(name), images.with_name(f"{name}.gz")) if path.exists()), None)


def labels(images: Path, count: int) -> np.ndarray:
    """The labels (count,) of a file of images, zeros if none are beside it. Raises ValueError."""
    beside = labels_beside(images)
    found = read(beside, 1) if beside else np.zeros(count, np.uint8)
    if len(found) != count:
        raise ValueError(f"{len(found)} labels for {count} images")
    return found
