"""What images hold at each scale, in numbers: their power, what noise leaves of them, and the energy of residuals.

An image of a channel is a field of h x h pixels. Each frequency of it has a variance over the images; by the unitary
transform white noise of variance 1 has variance 1 at every frequency.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from multiscale.core.resize import area_to
from multiscale.methods.msf import residual
from multiscale.methods.swd.spectrum import masking


def variances(x: Tensor) -> Tensor:
    """The variance of each frequency (h, h) over images (N, C, h, h), a mean over channels; N is at least 2."""
    x = x.double()
    waves = torch.fft.fft2(x - x.mean(0), norm="ortho")
    found: Tensor = waves.abs().square().sum(0).mean(0) / (len(x) - 1)
    return found


def kept(full: int, resolution: int) -> Tensor:
    """Which frequencies (full, full) an image of a smaller resolution has: resolution^2 of them."""
    place = torch.fft.fftfreq(full, 1 / full)
    inside: Tensor = (place >= -resolution / 2) & (place < resolution / 2)
    return torch.outer(inside, inside)


def octaves(variance: Tensor) -> list[dict[str, Any]]:
    """The frequencies that each doubling of the resolution adds, coarse to fine, without the mean.

    power: the mean variance of one of them; share: of all variance; masked: see `masking`.
    """
    full, rows = len(variance), []
    inside = torch.zeros_like(variance, dtype=torch.bool)
    inside[0, 0] = True
    total = variance[~inside].sum().item()
    for resolution in doublings(full):
        added = kept(full, resolution) & ~inside
        inside |= added
        power = variance[added].mean()
        share = variance[added].sum().item() / total
        rows.append({"resolution": resolution, "power": power.item(), "masked": masking(power).item(), "share": share})
    return rows


def doublings(full: int) -> list[int]:
    """A resolution, its half, its quarter and so on, as long as they are even, coarse to fine."""
    found = [full]
    while found[0] % 2 == 0 and found[0] > 2:
        found.insert(0, found[0] // 2)
    return found


def exponent(frequencies: Tensor, power: Tensor) -> float:
    """a of the power law P = c / f^a that is nearest to a radial spectrum, by least squares of the logarithms."""
    x, y = frequencies.log(), power.clamp_min(1e-12).log()
    x = x - x.mean()
    return -((x * y).sum() / x.square().sum()).item()


def information(variance: Tensor, snr: float, resolution: int) -> float:
    """Bits that x_t = a x + s e, (a / s)^2 = snr, tells of a channel of x at the frequencies of a resolution.

    The sum of log2(1 + snr P) / 2. It is exact for a stationary Gaussian field, and the most that any field with these
    variances may have.
    """
    return torch.log2(1 + snr * variance[kept(len(variance), resolution)]).sum().item() / 2


def share(variance: Tensor, snr: float, resolution: int) -> float:
    """The share of the information of x_t that lies in the frequencies of a resolution."""
    return information(variance, snr, resolution) / information(variance, snr, len(variance))


def energies(x: Tensor, resolutions: Sequence[int]) -> list[float]:
    """The variance of a number of each of MSF's scales of images (N, C, h, h), in that of a number of the images.

    The base is the image averaged to the first resolution, the last resolution is h (arXiv 2501.13349, algorithm 1).
    """
    x = x.float() - x.float().mean((0, 2, 3), keepdim=True)
    targets = residual.decompose(x, area_to(x, resolutions[0]), resolutions)
    return [(target.double().var(correction=0) / x.double().var(correction=0)).item() for target in targets]
