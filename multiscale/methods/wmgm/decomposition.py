"""WMGM's decomposition of all images: their bands, and the statistics of these."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from multiscale.core.storage import Table
from multiscale.decomposition import Source, of_images
from multiscale.methods.wmgm import bands

if TYPE_CHECKING:
    from multiscale.methods.wmgm.settings import Wavelet


class Bands:
    """The bands of `bands.decompose_images`, in fp32: half precision would lose 8-bit steps."""

    resolution = None

    def __init__(self, section: Wavelet, source: Source):
        self.wavelet, self.levels, self.table = section.filter, section.levels, source.pixels()
        self.count, channels, resolution, _ = self.table.arrays["pixels"].shape
        self.shapes = of_images(self.count, bands.shapes(channels, resolution, self.wavelet, self.levels))

    def block(self, rows: slice) -> dict[str, Tensor]:
        block = self.table[rows]
        return {**bands.decompose_images(block["pixels"], self.wavelet, self.levels), "label": block["label"]}

    def statistics(self, made: Table) -> dict[str, Any]:
        return bands.statistics(made, self.wavelet, self.levels)


def decompose(section: Wavelet, source: Source) -> Bands:
    """The decomposition that a section of the experiment describes."""
    return Bands(section, source)
