"""The images as they are, which SSD and every other method on pixels trains on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from multiscale.core.storage import Table
from multiscale.decomposition import Source, of_images

if TYPE_CHECKING:
    from multiscale.methods.ssd.settings import Pixels


class Images:
    """pixels uint8 (N, C, H, H), ready to be memory-mapped."""

    resolution = None

    def __init__(self, source: Source):
        self.table = source.pixels()
        self.count = len(self.table)
        self.shapes = of_images(self.count, {"pixels": self.table.arrays["pixels"].shape[1:]}, np.uint8)

    def block(self, rows: slice) -> dict[str, Tensor]:
        return self.table[rows]

    def statistics(self, made: Table) -> dict[str, Any]:
        return {}


def decompose(section: Pixels, source: Source) -> Images:
    """The decomposition that a section of the experiment asks for."""
    return Images(source)
