"""One image of a source, and its split: named by a word of its path, or by a hash."""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from stages.schema.data import Data

SPLITS = {"train": "train", "training": "train", "validation": "validation", "valid": "validation", "val": "validation"}
SPLITS |= {"test": "test", "testing": "test"}


@dataclass(frozen=True)
class Item:
    """One image before decoding; `read` fetches its bytes."""

    id: str
    split: str
    label: int
    read: Callable[[], bytes]
    kind: str = ""  # the name of its class
    caption: str = ""  # none, where the data has no captions


def split_in(stem: str) -> str | None:
    """The split that a word of a path names."""
    words = re.split("[^a-z]+", stem.lower().replace("t10k", "test"))  # MNIST's name for its test split
    return next((SPLITS[word] for word in words if word in SPLITS), None)


def split_by_hash(name: str, data: Data) -> str:
    """A split that depends only on the name, so that no image changes its split when the dataset grows."""
    share = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=6).digest(), "big") / 2**48
    if share < data.test_share:
        return "test"
    return "validation" if share < data.test_share + data.validation_share else "train"


def png(pixels: np.ndarray) -> bytes:
    """Pixels uint8 (H, W) as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
