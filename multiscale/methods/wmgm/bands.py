"""WMGM's decomposition of an image: a coarse band and the details of each level, with their statistics.

Two transforms share one interface: wavelets, and the ablation in pixels (area-averaged image, residual against its
bilinear enlargement). Level j turns x_{j-1} into x_j and d_j; x_0 is the image in [0, 1], x_J the coarse band.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor

from multiscale.core.resize import area_to, bilinear_to
from multiscale.core.storage import Table
from multiscale.methods.wmgm.wavelet import Wavelet, check_resolutions
from multiscale.methods.wmgm.whitening import BandStatistics

PIXELS = "pixels"  # stands for the ablation where the name of a wavelet is expected
LOW = "ll"
BLOCK = 2**22  # numbers in memory at once


class Transform(Protocol):
    """One level of a decomposition; `wavelet.Wavelet` is one."""

    gain: int  # growth of the range of values each level

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x_{j-1} -> (x_j, d_j)."""
        ...

    def merge(self, low: Tensor, details: Tensor) -> Tensor:
        """Undoes `split`."""
        ...

    def grid(self, low: Tensor) -> Tensor:
        """x_j on the grid of d_j: the condition of a generator of d_j."""
        ...


class PixelTransform:
    """x_j averages 2 x 2 pixels; d_j (N, C, 2h, 2h) is the residual of its bilinear enlargement."""

    gain = 1

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        check_resolutions(x.shape[-2:], 1)
        low = area_to(x, x.shape[-1] // 2)
        return low, x - self.grid(low)

    def merge(self, low: Tensor, details: Tensor) -> Tensor:
        return self.grid(low) + details

    def grid(self, low: Tensor) -> Tensor:
        return bilinear_to(low, 2 * low.shape[-1])


def transform_of(name: str) -> Transform:
    """The transform of an orthogonal wavelet's name, or of 'pixels'. Raises ValueError for any other."""
    return PixelTransform() if name == PIXELS else Wavelet(name)


def detail(level: int) -> str:
    """The name of the details of a level, 1 the finest."""
    return f"details-{level}"


def decompose_images(pixels: Tensor, wavelet: str, levels: int) -> dict[str, Tensor]:
    """uint8 pixels (N, C, H, H) -> float32 bands 'll' (N, C, H / 2^J, H / 2^J) and 'details-1', ..., 'details-J'.

    details-j is (N, 3C, H / 2^j, H / 2^j), or (N, C, H / 2^(j-1), H / 2^(j-1)) for the ablation 'pixels'. The bands are
    those of images in [0, 1], not whitened. Raises ValueError for zero levels, a resolution that 2^levels does not
    divide, and a wavelet that is unknown or not orthogonal.
    """
    check_resolutions(pixels.shape[-2:], levels)
    transform, x, bands = transform_of(wavelet), pixels.float() / 255, {}
    for level in range(1, levels + 1):
        x, bands[detail(level)] = transform.split(x)
    return {LOW: x.contiguous(), **bands}


def shapes(channels: int, resolution: int, wavelet: str, levels: int) -> dict[str, tuple[int, ...]]:
    """The shape of each band of one image. Raises ValueError as `decompose_images` does."""
    bands = decompose_images(torch.zeros(1, channels, resolution, resolution, dtype=torch.uint8), wavelet, levels)
    return {name: tuple(band.shape[1:]) for name, band in bands.items()}


def coarse(batch: Mapping[str, Tensor], transform: Transform, levels: int, down_to: int = 0) -> dict[int, Tensor]:
    """x_j for j from `levels` down to `down_to`, from the bands of a batch."""
    found = {levels: batch[LOW]}
    for level in range(levels, down_to, -1):
        found[level - 1] = transform.merge(found[level], batch[detail(level)])
    return found


def statistics(table: Table, wavelet: str, levels: int) -> dict[str, Any]:
    """What statistics.json holds of a decomposition: `BandStatistics.summary` of each band, and of the images.

    'bands' has 'll', 'details-1', ..., 'details-J' and 'pixels'; 'coarse' lists mean and std of x_0, ..., x_J. Reads
    the table twice, since the moments are taken about the means. Raises ValueError for an empty table.
    """
    if len(table) == 0:
        raise ValueError("a decomposition of no images has no statistics; allowed: at least 1 image")
    transform = transform_of(wavelet)
    rows = max(1, BLOCK // sum(math.prod(array.shape[1:]) for array in table.arrays.values()))

    def blocks() -> Iterator[dict[str, Tensor]]:
        for start in range(0, len(table), rows):
            batch = table[slice(start, start + rows)]
            lows = coarse(batch, transform, levels)
            yield {f"x{j}": x for j, x in lows.items()} | {detail(j): batch[detail(j)] for j in range(1, levels + 1)}

    totals: dict[str, Tensor] = {}
    for block in blocks():
        for name, x in block.items():
            total = x.double().mean((2, 3)).sum(0)
            totals[name] = totals[name] + total if name in totals else total
    gathered = {name: BandStatistics(name, total / len(table)) for name, total in totals.items()}
    for block in blocks():
        for name, x in block.items():
            gathered[name].add(x)
    summaries = {name: each.summary() for name, each in gathered.items()}
    named = {LOW: summaries[f"x{levels}"], PIXELS: summaries["x0"]}
    return {
        "wavelet": wavelet,
        "levels": levels,
        "channels": summaries["x0"]["channels"],
        "resolution": summaries["x0"]["resolution"],
        "bands": named | {detail(j): summaries[detail(j)] for j in range(1, levels + 1)},
        "coarse": [{key: summaries[f"x{j}"][key] for key in ("mean", "std")} for j in range(levels + 1)],
    }
