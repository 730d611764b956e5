"""The spectral rule: how small a grid may be at a noise level without losing what the noise has left visible.

A frequency of power P(f) is masked at noise sigma when (1 - sigma)^2 P(f) <= sigma^2, since unit white noise has power
1 at every frequency. A grid of side s keeps the frequencies below s / (2 S) cycles a pixel of the full side S. So the
smallest safe side at sigma is the one that discards masked frequencies alone (SwD, arXiv 2503.16397, section 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor


class RadialPower:
    """The radially averaged power spectrum of images (N, C, h, h) that are seen block by block, over all channels.

    Normalised so that unit white noise has 1 everywhere. Bins are rings of one cycle an image around 1/h, ..., 1/2
    cycles a pixel; the corners beyond 1/2 belong to the last.
    """

    def __init__(self, side: int):
        self.side = side
        place = torch.fft.fftfreq(side, dtype=torch.float64) * side
        radius = (place[:, None].square() + place.square()).sqrt().round().clamp_max(side // 2).long().flatten()
        self.ring, self.size = radius, torch.bincount(radius).double()
        self.total, self.count = torch.zeros(len(self.size), dtype=torch.float64), 0

    def add(self, x: Tensor) -> None:
        """Takes in a block (N, C, h, h)."""
        energy = torch.fft.fft2(x.double(), norm="ortho").abs().square().mean(1).sum(0).flatten().cpu()
        self.total.index_add_(0, self.ring, energy)
        self.count += len(x)

    @property
    def frequencies(self) -> Tensor:
        """Cycles a pixel of each ring, the mean (ring 0) left out."""
        return torch.arange(1, len(self.size), dtype=torch.float64) / self.side

    @property
    def power(self) -> Tensor:
        """The mean power of each ring, the mean (ring 0) left out."""
        return (self.total / self.size / self.count)[1:]


def radial_power(blocks: Iterable[Tensor], side: int) -> tuple[Tensor, Tensor]:
    """(frequencies, power) of blocks of images (N, C, side, side)."""
    spectrum = RadialPower(side)
    for block in blocks:
        spectrum.add(block)
    return spectrum.frequencies, spectrum.power


def cutoff(frequencies: Tensor, power: Tensor, sigma: float) -> float:
    """The lowest frequency from which on everything is masked at noise sigma; infinite where nothing is."""
    visible = ((1 - sigma) ** 2 * power > sigma**2).nonzero()
    first = int(visible.max()) + 1 if len(visible) else 0
    return frequencies[first].item() if first < len(frequencies) else float("inf")


def smallest_safe(frequencies: Tensor, power: Tensor, sigma: float, sides: Sequence[int]) -> int:
    """The smallest of `sides` that discards masked frequencies alone; the largest is the full side."""
    full, masked_from = max(sides), cutoff(frequencies, power, sigma)
    return next((side for side in sorted(sides) if side / (2 * full) >= masked_from), full)


def proposed(frequencies: Tensor, power: Tensor, sigmas: Sequence[float], sides: Sequence[int]) -> list[int]:
    """A side for each falling noise level: the smallest safe one, the full side at the last step."""
    return [smallest_safe(frequencies, power, sigma, sides) for sigma in sigmas[:-1]] + [max(sides)]
