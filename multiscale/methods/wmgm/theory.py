"""The theory behind WMGM, as tables: condition numbers, and the Euler steps that Gaussian fields need.

A stationary Gaussian field on an H x H torus has independent Fourier modes, whose variances are its spectrum P. One
level of an orthonormal wavelet transform mixes the four frequencies that alias to one of the half grid, so the joint
covariance of the bands is a 4 x 4 matrix for each: everything here is in closed form (arXiv 2208.05003, 2411.09356).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from multiscale.methods.wmgm.bands import PIXELS
from multiscale.methods.wmgm.score import VP, times
from multiscale.methods.wmgm.wavelet import Wavelet, analysis_matrix, check_resolutions

MOST_STEPS = 2**20
COARSEST = 4  # resolution of the coarsest band


def power_law(resolution: int) -> Tensor:
    """The spectrum P = 1 / |f|^2 over integer frequencies, (resolution, resolution); P(0) is that of |f| = 1."""
    f = torch.fft.fftfreq(resolution, 1 / resolution, dtype=torch.float64)
    radius = (f[:, None] ** 2 + f[None] ** 2).sqrt()
    radius[0, 0] = 1
    spectrum: Tensor = radius**-2
    return spectrum


def _responses(name: str, resolution: int) -> Tensor:
    """The filters' unitary frequency responses in one dimension: (resolution / 2, low or high, 2 aliases)."""
    rows = analysis_matrix(name, resolution)[[0, resolution // 2]]
    spectrum: Tensor = torch.fft.fft(rows).conj() / math.sqrt(2)  # (low or high, resolution)
    return spectrum.reshape(2, 2, resolution // 2).permute(2, 0, 1)


def band_covariances(spectrum: Tensor, name: str) -> Tensor:
    """P (H, H) -> the covariance (H/2, H/2, 4, 4) of low band and details at each frequency of the half grid.

    The four are in the order of `multiscale.methods.wmgm.wavelet`: low, cH, cV, cD. Raises ValueError as Wavelet does.
    """
    Wavelet(name)  # raises for a wavelet that is not orthogonal
    resolution = spectrum.shape[-1]
    check_resolutions((resolution,), 1)
    half = resolution // 2
    one = _responses(name, resolution)
    mix = torch.einsum("iax,jby->ijabxy", one, one)  # rows' filter a, columns' filter b; aliases x, y
    mix = mix[:, :, [0, 1, 0, 1], [0, 0, 1, 1]].flatten(3)  # (H/2, H/2, band, alias)
    aliases = spectrum.view(2, half, 2, half).permute(1, 3, 0, 2).reshape(half, half, 1, 4)
    return (mix * aliases) @ mix.mH


@dataclass(frozen=True)
class Modes:
    """Independent Gaussian modes of a band given the coarser bands, after whitening by the bands' scales.

    variance and the mean square of the conditional mean: (M,) each.
    """

    variance: Tensor
    mean_square: Tensor


def pixel_modes(spectrum: Tensor) -> Modes:
    """The modes of the images, divided by the standard deviation of a pixel."""
    variance = spectrum.flatten() / spectrum.mean()
    return Modes(variance, torch.zeros_like(variance))


def wavelet_modes(spectrum: Tensor, name: str, levels: int) -> list[Modes]:
    """The modes of d_1 given x_1, d_2 given x_2, ..., x_J: each band divided by its standard deviation."""
    found = []
    for _ in range(levels):
        covariance = band_covariances(spectrum, name)
        low, cross = covariance[..., 0, 0].real, covariance[..., 1:, :1]
        explained = cross @ cross.mH / low[..., None, None]
        scale = covariance[..., 1:, 1:].diagonal(dim1=-2, dim2=-1).real.mean((0, 1)).rsqrt()
        whiten = torch.outer(scale, scale)
        variance, vectors = torch.linalg.eigh((covariance[..., 1:, 1:] - explained) * whiten)
        mean_square = (vectors.mH @ (explained * whiten).to(vectors) @ vectors).diagonal(dim1=-2, dim2=-1).real
        found.append(Modes(variance.flatten(), mean_square.flatten()))
        spectrum = low
    variance = spectrum.flatten() / spectrum.mean()
    return [*found, Modes(variance, torch.zeros_like(variance))]


def condition(modes: Modes) -> float:
    """The largest over the least variance of a mode."""
    return (modes.variance.max() / modes.variance.min()).item()


def levels_to_coarsest(resolution: int) -> int:
    """How often a resolution is halved until it is `COARSEST`. Raises ValueError where it never is."""
    levels = int(math.log2(resolution / COARSEST)) if resolution > COARSEST else 0
    if levels < 1 or COARSEST << levels != resolution:
        allowed = f"{COARSEST} times a power of two above 1"
        raise ValueError(f"a resolution of {resolution} halved to {COARSEST}; allowed: {allowed}")
    return levels


def field_conditioning(resolutions: list[int], wavelet: str = "haar") -> list[dict[str, float]]:
    """A row a resolution: condition numbers of pixels, of the coarsest band x_J, and the worst of the details."""
    rows = []
    for resolution in resolutions:
        spectrum = power_law(resolution)
        *details, low = map(condition, wavelet_modes(spectrum, wavelet, levels_to_coarsest(resolution)))
        pixels = condition(pixel_modes(spectrum))
        rows.append({"resolution": resolution, "pixels": pixels, "low": low, "details": max(details)})
    return rows


def data_conditioning(statistics: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a band of a decomposition's statistics: condition numbers, and by which factor the pixels' are larger."""
    pixels = statistics["bands"][PIXELS]
    rows = []
    for name, band in statistics["bands"].items():
        row = {"band": name, "resolution": band["resolution"]}
        for key in ("condition", "condition_spectral"):
            known = band[key] is not None and pixels[key] is not None
            row |= {key: band[key], f"{key}_gain": pixels[key] / band[key] if known else None}
        rows.append(row)
    return rows


def euler_output(modes: Modes, steps: int) -> tuple[Tensor, Tensor]:
    """The result of `score.euler_maruyama` on Gaussian modes with their exact score, in closed form.

    v <- a^2 v + h beta,  g <- a g + h beta alpha / s,  a = 1 + h beta (1/2 - 1/s),  s = alpha^2 lambda + sigma^2,
    from v = 1, g = 0, the last step one like the others, without denoising. Returns the variance v (M,) and the
    gain g (M,): a conditional mean m comes out as g m.
    """
    t = torch.tensor(times(steps)[:-1], dtype=torch.float64)
    alpha, sigma2 = VP.alpha(t), VP.sigma(t) ** 2
    rates = (VP.beta(t) / steps).tolist()
    v, g = torch.ones_like(modes.variance), torch.zeros_like(modes.variance)
    for rate, signal, noise in zip(rates, alpha.tolist(), sigma2.tolist()):
        s = signal**2 * modes.variance + noise
        a = 1 + rate * (0.5 - 1 / s)
        v, g = a * a * v + rate, a * g + rate * signal / s
    return v, g


def euler_error(groups: list[tuple[Modes, Tensor]], steps: int, kind: str) -> float:
    """The error of the distribution that Euler's method samples, each band with the data's own x_j as condition.

    groups: of each band the distinct modes, and how often each occurs. 'worst': the largest relative error of a mode's
    variance, or of its conditional mean. 'wasserstein': the squared 2-Wasserstein distance per dimension, in whitened
    units. 'kl': the KL divergence per dimension, in nats; its sum over the bands is the joint one to first order.
    """
    total, dimensions, worst = 0.0, 0, 0.0
    for modes, count in groups:
        v, g = euler_output(modes, steps)
        ratio = v / modes.variance
        moved = (g - 1) ** 2 * modes.mean_square
        dimensions += int(count.sum())
        if kind == "worst":
            shifted = (g - 1).abs() * (modes.mean_square > 0)
            worst = max(worst, torch.maximum((ratio - 1).abs(), shifted).max().item())
        elif kind == "wasserstein":
            total += (((v.sqrt() - modes.variance.sqrt()) ** 2 + moved) * count).sum().item()
        else:
            total += 0.5 * ((ratio - 1 - ratio.log() + moved / modes.variance) * count).sum().item()
    return worst if kind == "worst" else total / dimensions


def steps_to_reach(error: float, bands: list[Modes], kind: str = "worst") -> int:
    """The least number of Euler steps, the same in every band, whose `euler_error` is at most `error`.

    Raises ValueError where 2^20 steps do not suffice.
    """
    groups, high = [grouped(modes) for modes in bands], 1
    while not euler_error(groups, high, kind) <= error:  # also where it is not a number
        high *= 2
        if high > MOST_STEPS:
            raise ValueError(f"an error of {error} takes more than {MOST_STEPS} Euler steps; allowed: a larger one")
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if euler_error(groups, middle, kind) <= error else (middle, high)
    return high


def grouped(modes: Modes) -> tuple[Modes, Tensor]:
    """The distinct modes and how often each occurs: symmetry makes most of them equal."""
    pairs = torch.stack([modes.variance, modes.mean_square], 1)
    rounded = (pairs / pairs.abs().amax(0).clamp_min(1e-300) * 1e10).round()
    _, inverse, count = torch.unique(rounded, dim=0, return_inverse=True, return_counts=True)
    first = torch.empty(len(count), dtype=torch.long).scatter_(0, inverse, torch.arange(len(inverse)))
    return Modes(modes.variance[first], modes.mean_square[first]), count


def steps_table(
    resolutions: list[int], error: float, kind: str = "worst", wavelet: str = "haar"
) -> list[dict[str, float]]:
    """A row a resolution: Euler steps to `error` in pixels and in whitened wavelets, and their ratio."""
    rows = []
    for resolution in resolutions:
        spectrum = power_law(resolution)
        pixels = steps_to_reach(error, [pixel_modes(spectrum)], kind)
        wavelets = steps_to_reach(error, wavelet_modes(spectrum, wavelet, levels_to_coarsest(resolution)), kind)
        rows.append({"resolution": resolution, "pixels": pixels, "wavelets": wavelets, "ratio": pixels / wavelets})
    return rows
