"""What `evaluate.reference` names, to measure images against: ADM's reference batch, or a folder of images."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from multiscale.core.storage import digest_files
from stages.common.errors import refuse
from stages.common.images import IMAGE_SUFFIXES
from stages.common.paths import EXPERIMENT
from stages.datasets.item import content, decoded, is_hidden, readable
from stages.schema import Experiment

KEY, INCEPTION = "evaluate.reference", "inception-v3-compat"
STATISTICS = {"real": ("mu", "sigma", 2048), "spatial": ("mu_s", "sigma_s", 2023)}  # ADM's names, features of Inception
LONGEST_HEADER = 1 << 16  # bytes that tell the shape and type of an array
HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class Given:
    """A reference: images, statistics of the features of images, or both."""

    name: str
    count: int
    """of the images; 0: there are statistics alone"""
    rows: Callable[[Tensor], Tensor]
    """row numbers -> uint8 images (n, C, H, W)"""
    statistics: dict[str, dict[str, np.ndarray]]
    """by layer: `real`, `spatial`; {}: none"""


def of(params: Experiment) -> Given | None:
    """The reference that the experiment names; None: it names none. Raises BadInput for one of another protocol."""
    given = params.evaluate.reference
    if given is None:
        return None
    path, edge = Path(given), params.evaluate.resolution or params.data.resolution
    mode = "L" if params.data.channels == 1 else "RGB"
    if path.is_dir():
        found = _folder(path, edge, mode)
        _enough(path, found.count, params.evaluate.prc_neighborhood)
        return found
    if not path.is_file():
        raise refuse(EXPERIMENT, KEY, given, "an existing .npz, as ADM's reference batches are, or folder of images")
    with _whole(path), np.load(path, allow_pickle=False) as file:
        return _batch(path, file, params, edge, mode)


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    with readable(f"{EXPERIMENT}: {KEY}: {str(path)!r}", "a whole .npz, as ADM's reference batches are"):
        if not zipfile.is_zipfile(path):  # of which an array claims to be of any size
            raise ValueError("no zip")
        yield


def _header(file: Any, name: str) -> tuple[tuple[int, ...], np.dtype]:
    """The shape and type of an array, before gigabytes are read. Raises ValueError where it does not hold as much."""
    member = file.zip.getinfo(f"{name}.npy")
    with file.zip.open(member) as array:
        start = io.BytesIO(array.read(LONGEST_HEADER))
    version = np.lib.format.read_magic(start)
    if version not in HEADERS:
        raise ValueError(f"{name} is of version {version}")
    shape, _, dtype = HEADERS[version](start)
    size = math.prod(shape) * dtype.itemsize
    if start.tell() + size != member.file_size:
        raise ValueError(f"{name} claims {size} bytes, {member.file_size - start.tell()} are there")
    return shape, dtype


def _batch(path: Path, file: Any, params: Experiment, edge: int, mode: str) -> Given:
    held, section = set(file.files), params.evaluate
    if not held & {"arr_0", "mu"}:
        raise refuse(EXPERIMENT, KEY, str(path), f"arr_0 (images), or mu and sigma, in it (it has {', '.join(held)})")
    found: dict[str, dict[str, np.ndarray]] = {}
    for layer, (mu, sigma, size) in STATISTICS.items():
        if mu not in held:
            continue
        shapes = _header(file, mu)[0], _header(file, sigma)[0] if sigma in held else ()
        if shapes != ((size,), (size, size)):
            what = f"{mu} and {sigma} of Inception's {size} features"
            raise refuse(EXPERIMENT, KEY, str(path), f"{what} (it has {shapes[0]}, {shapes[1]})")
        found[layer] = {"mu": file[mu], "sigma": file[sigma]}
    if found and section.extractor != INCEPTION:
        allowed = f"{INCEPTION}, since {path} has statistics of its features"
        raise refuse(EXPERIMENT, "evaluate.extractor", section.extractor, allowed)
    count = 0
    if "arr_0" in held:
        shape, dtype = _header(file, "arr_0")
        count, fits = (*shape, 0)[0], section.resolution or (len(shape) == 4 and shape[1:3] == (edge, edge))
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not fits:
            allowed = f"arr_0 of uint8 (N, {edge}, {edge}, 3), as large as the samples (it has {dtype} {shape})"
            raise refuse(EXPERIMENT, KEY, str(path), f"{allowed}; evaluate.resolution resizes both")
        _enough(path, count, section.prc_neighborhood)
    read: list[np.ndarray] = []

    def rows(numbers: Tensor) -> Tensor:
        if not read:
            with _whole(path), np.load(path, allow_pickle=False) as whole:
                read.append(whole["arr_0"])
        chosen = (Image.fromarray(each).convert(mode) for each in read[0][numbers.numpy()])
        return _stack(fitted(image, section.resolution) for image in chosen)

    return Given(f"{path.name} {digest_files([path])[:16]}", count, rows, found)


def _enough(path: Path, count: int, neighbours: int) -> None:
    if count <= neighbours:  # an image is not a neighbour of itself
        raise refuse(EXPERIMENT, KEY, str(path), f"more than {neighbours} images (it has {count})")


def _folder(folder: Path, edge: int, mode: str) -> Given:
    found = (path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    paths = sorted(path for path in found if not is_hidden(path.relative_to(folder).as_posix()))
    if not paths:
        raise refuse(EXPERIMENT, KEY, str(folder), "a folder of images, or an .npz")

    def read(path: Path) -> Image.Image:
        with readable(path, f"an image (see {KEY} in {EXPERIMENT})"):
            return fitted(decoded(content(path), mode), edge)

    def rows(numbers: Tensor) -> Tensor:
        with ThreadPoolExecutor(2) as pool:
            return _stack(pool.map(read, (paths[row] for row in numbers.tolist())))

    return Given(folder.name, len(paths), rows, {})


def fitted(image: Image.Image, edge: int | None) -> Image.Image:
    """The centre crop of an image, at this edge by Lanczos; None: the image as it is."""
    if edge is None:
        return image
    return ImageOps.fit(image, (edge, edge), Image.Resampling.LANCZOS)


def resized(images: Tensor, edge: int | None) -> Tensor:
    """uint8 images (N, C, H, H) at this edge by Lanczos; None: as they are."""
    if edge is None:
        return images
    squares = images.permute(0, 2, 3, 1).squeeze(3).numpy()
    return _stack(fitted(Image.fromarray(each), edge) for each in squares)


def _stack(found: Any) -> Tensor:
    made = torch.from_numpy(np.stack([np.asarray(image) for image in found]))
    return made[:, None] if made.ndim == 3 else made.permute(0, 3, 1, 2).contiguous()
