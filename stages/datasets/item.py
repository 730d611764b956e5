"""One image of a source, and its split: named by a word of its path, or by a hash; how files and images are read."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from stages.common.errors import BadInput, one_line
from stages.schema.data import Data

SPLITS = {  # by the words that name them
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "test": "test",
    "testing": "test",
}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")  # an icon holds images larger than it says
LARGEST = 50_000_000  # pixels of the largest image that is decoded: a few bytes can claim gigabytes


@dataclass(frozen=True)
class Item:
    """One image before decoding; `read` fetches its bytes."""

    id: str
    split: str
    label: int
    read: Callable[[], bytes]
    kind: str = ""  # the name of its class
    caption: str = ""  # none, where the data has no captions


@contextmanager
def readable(place: object, allowed: str) -> Iterator[None]:
    """Turns whatever libraries raise at a damaged file into BadInput, which names it."""
    try:
        yield
    except BadInput:
        raise
    except Exception as error:  # of too many kinds to name
        why = one_line(f"{type(error).__name__}: {error}")
        raise BadInput(f"{place}: cannot be read ({why}); allowed: {allowed}") from None


def is_hidden(name: str) -> bool:
    """Whether a file is hidden, or in a hidden folder such as .ipynb_checkpoints."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def content(path: Path) -> bytes:
    """The bytes of a file. Raises ValueError for what is none."""
    if not path.is_file():
        raise ValueError("a link that leads nowhere, or no file")  # reading from a pipe would never end
    return path.read_bytes()


def opened(encoded: bytes) -> Image.Image:
    """An image, not decoded yet. Raises ValueError for another format and for too many pixels."""
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except UnidentifiedImageError:  # its text has the address of our buffer
        raise ValueError("no image of a known format") from None
    if image.width * image.height > LARGEST:
        raise ValueError(f"{image.width} x {image.height} pixels, more than {LARGEST:,} in all")
    return image


def decoded(encoded: bytes, mode: str) -> Image.Image:
    """An image in the mode 'L' or 'RGB', turned as its EXIF data say. Raises ValueError, and what Pillow raises."""
    with opened(encoded) as image:
        return to_eight_bits(ImageOps.exif_transpose(image)).convert(mode)


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Scales 16-bit pixels to 8 bits: Pillow would clip them to white. Raises ValueError for modes of unknown range."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode}, whose range is unknown")
    return image


def split_in(stem: str) -> str | None:
    """The split that a word of a path names."""
    words = re.split("[^a-z]+", stem.lower().replace("t10k", "test"))  # MNIST's name for its test split
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def split_by_hash(name: str, data: Data) -> str:
    """A split that depends only on the name: no image changes it when others join, if its path stays as it is.

    A folder that all images share is no part of a name: with another one beside it, it becomes one.
    """
    share = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "big") / 2**48
    if share < data.test_share:
        return "test"
    return "validation" if share < data.test_share + data.validation_share else "train"


def hold_out(items: list[Item], data: Data) -> list[Item]:
    """The items; of a dataset with splits but none for validation, the share of the training images is held out."""
    if any(item.split == "validation" for item in items):
        return items

    def is_held(item: Item) -> bool:
        return item.split == "train" and split_by_hash(item.id, data) == "validation"

    return [replace(item, split="validation") if is_held(item) else item for item in items]


def png(pixels: np.ndarray) -> bytes:
    """Pixels uint8 (H, W) as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
