"""The spectral rule: how low a resolution may be at a noise level without losing what the noise leaves visible.

A frequency of power P(f) is masked at noise sigma when (1 - sigma)^2 P(f) <= sigma^2, since unit white noise has power
1 at every frequency. A resolution s keeps the frequencies below s / (2 S) cycles a pixel of the full resolution S. So
the smallest safe resolution at sigma is the smallest that discards only masked frequencies (SwD, arXiv 2503.16397,
section 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

PATCH = 2


def radial_power(blocks: Iterable[Tensor], resolution: int) -> tuple[Tensor, Tensor]:
    """The frequencies and the radially averaged power spectrum of blocks of images (N, C, h, h), over all channels.

    Normalised so that unit white noise has power 1 everywhere. Bins are rings of one cycle an image around 1/h, ...,
    1/2 cycles a pixel; the corners beyond 1/2 belong to the last. The mean (ring 0) is left out.
    """
    place = torch.fft.fftfreq(resolution, dtype=torch.float64) * resolution
    ring = (place[:, None].square() + place.square()).sqrt().round().clamp_max(resolution // 2).long().flatten()
    size = torch.bincount(ring).double()
    total, count = torch.zeros(len(size), dtype=torch.float64), 0
    for x in blocks:
        energy = torch.fft.fft2(x.double(), norm="ortho").abs().square().mean(1).sum(0).flatten().cpu()
        total.index_add_(0, ring, energy)
        count += len(x)
    return torch.arange(1, len(size), dtype=torch.float64) / resolution, (total / size / count)[1:]


def masking(power: Tensor) -> Tensor:
    """The noise level s from which on a frequency of this power is masked: (1 - s)^2 P = s^2."""
    root = power.sqrt()
    return root / (1 + root)


def visible(power: Tensor, sigma: float) -> Tensor:
    """Whether noise of level sigma leaves each frequency to be seen, as `masking` says."""
    return (1 - sigma) ** 2 * power > sigma**2


def divisible(full: int) -> list[int]:
    """The resolutions up to a full one that the transformer's patches divide, and the full one."""
    return [*range(PATCH, full, PATCH), full]


def cutoff(frequencies: Tensor, power: Tensor, sigma: float) -> float:
    """The lowest frequency from which on everything is masked at noise sigma; infinite where nothing is."""
    seen = visible(power, sigma).nonzero()
    first = int(seen.max()) + 1 if len(seen) else 0
    return frequencies[first].item() if first < len(frequencies) else float("inf")


def smallest_safe(frequencies: Tensor, power: Tensor, sigma: float, resolutions: Sequence[int]) -> int:
    """The smallest of `resolutions` that discards only masked frequencies; the largest is the full resolution."""
    full, masked_from = max(resolutions), cutoff(frequencies, power, sigma)
    return next((resolution for resolution in sorted(resolutions) if resolution / (2 * full) >= masked_from), full)


def proposed(frequencies: Tensor, power: Tensor, sigmas: Sequence[float], resolutions: Sequence[int]) -> list[int]:
    """A resolution for each falling noise level: the smallest safe one, and the full one at the last step."""
    return [smallest_safe(frequencies, power, sigma, resolutions) for sigma in sigmas[:-1]] + [max(resolutions)]
