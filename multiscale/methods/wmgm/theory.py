"""The theory behind WMGM, as tables: condition numbers, and the Euler steps that Gaussian fields need.

A stationary Gaussian field on an H x H torus has independent Fourier modes, whose variances are its spectrum P. One
level of an orthonormal wavelet transform mixes the four frequencies that alias to one of the half grid, so the bands'
joint covariance is a 4 x 4 matrix for each: everything here is closed form (arXiv 2208.05003, 2411.09356).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from multiscale.methods.wmgm.bands import PIXELS
from multiscale.methods.wmgm.score import VP, VPSchedule, times
from multiscale.methods.wmgm.wavelet import Wavelet, analysis_matrix, check_sides

MOST_STEPS = 2**20


def power_law(side: int, exponent: float = 2.0) -> Tensor:
    """The spectrum P = 1 / |f|^exponent (side, side) over integer frequencies; the mean has that of |f| = 1."""
    f = torch.fft.fftfreq(side, 1 / side, dtype=torch.float64)
    radius = (f[:, None] ** 2 + f[None] ** 2).sqrt()
    radius[0, 0] = 1
    return radius**-exponent


def _responses(name: str, side: int) -> Tensor:
    """The filters' frequency responses in one dimension, unitary: (side/2 frequencies, low or high, 2 aliases)."""
    rows = analysis_matrix(name, side)[[0, side // 2]]
    spectrum = torch.fft.fft(rows).conj() / math.sqrt(2)  # (low or high, side)
    return spectrum.unflatten(1, (2, side // 2)).permute(2, 0, 1)


def band_covariances(spectrum: Tensor, name: str) -> Tensor:
    """P (H, H) -> the covariance (H/2, H/2, 4, 4) of low band and details at each frequency of the half grid.

    The order of the four is that of `multiscale.methods.wmgm.wavelet`: low, cH, cV, cD.
    """
    Wavelet(name)  # refuses what is not orthogonal
    side = spectrum.shape[-1]
    check_sides((side,), 1)
    half = side // 2
    one = _responses(name, side)
    mix = torch.einsum("iax,jby->ijabxy", one, one)  # rows' filter a, columns' filter b; aliases x, y
    mix = mix[:, :, [0, 1, 0, 1], [0, 0, 1, 1]].flatten(3)  # (H/2, H/2, band, alias)
    aliases = spectrum.view(2, half, 2, half).permute(1, 3, 0, 2).reshape(half, half, 1, 4)
    return (mix * aliases) @ mix.mH


@dataclass(frozen=True)
class Modes:
    """Independent Gaussian modes of a band given what is made before it, after whitening by the bands' scales.

    variance and the mean square of the conditional mean, (M,) each.
    """

    name: str
    variance: Tensor
    mean_square: Tensor


def pixel_modes(spectrum: Tensor) -> Modes:
    """The modes of the images, divided by the standard deviation of a pixel."""
    variance = spectrum.flatten() / spectrum.mean()
    return Modes(PIXELS, variance, torch.zeros_like(variance))


def wavelet_modes(spectrum: Tensor, name: str, levels: int) -> list[Modes]:
    """The modes of d_1 given x_1, d_2 given x_2, ..., x_J: each band divided by its standard deviation."""
    found = []
    for level in range(1, levels + 1):
        covariance = band_covariances(spectrum, name)
        low, cross = covariance[..., 0, 0].real, covariance[..., 1:, :1]
        explained = cross @ cross.mH / low[..., None, None]
        scale = covariance[..., 1:, 1:].diagonal(dim1=-2, dim2=-1).real.mean((0, 1)).rsqrt()
        whiten = torch.outer(scale, scale)
        variance, vectors = torch.linalg.eigh((covariance[..., 1:, 1:] - explained) * whiten)
        mean_square = (vectors.mH @ (explained * whiten).to(vectors) @ vectors).diagonal(dim1=-2, dim2=-1).real
        found.append(Modes(f"details-{level}", variance.flatten(), mean_square.flatten()))
        spectrum = low
    variance = spectrum.flatten() / spectrum.mean()
    return [*found, Modes("ll", variance, torch.zeros_like(variance))]


def condition(modes: Modes) -> float:
    """The largest over the least variance of a mode."""
    return (modes.variance.max() / modes.variance.min()).item()


def levels_to(side: int, coarsest: int) -> int:
    """How often a side is halved until it is `coarsest`. Raises ValueError where it never is."""
    levels = int(math.log2(side / coarsest)) if side > coarsest else 0
    if levels < 1 or coarsest << levels != side:
        raise ValueError(f"a side of {side} halved to {coarsest}; allowed: {coarsest} times a power of two above 1")
    return levels


def field_conditioning(
    sides: list[int], exponent: float = 2.0, wavelet: str = "haar", coarsest: int = 4
) -> list[dict[str, float]]:
    """A row a side: condition numbers of the pixels, of x_J (side `coarsest`), and the worst of the details."""
    rows = []
    for side in sides:
        spectrum = power_law(side, exponent)
        *details, low = wavelet_modes(spectrum, wavelet, levels_to(side, coarsest))
        worst = max(condition(each) for each in details)
        rows.append({"side": side, "pixels": condition(pixel_modes(spectrum)), "low": condition(low), "details": worst})
    return rows


def data_conditioning(statistics: dict) -> list[dict]:
    """A row a band of a decomposition's statistics: condition numbers, and how many times less than the pixels'."""
    pixels = statistics["bands"][PIXELS]
    rows = []
    for name, band in statistics["bands"].items():
        row = {"band": name, "side": band["side"]}
        for key in ("condition", "condition_spectral"):
            known = band[key] is not None and pixels[key] is not None
            row |= {key: band[key], f"{key}_gain": pixels[key] / band[key] if known else None}
        rows.append(row)
    return rows


def euler_output(modes: Modes, steps: int, schedule: VPSchedule = VP) -> tuple[Tensor, Tensor]:
    """What `score.euler_maruyama` without denoising makes of Gaussian modes with their exact score, in closed form.

    v <- a^2 v + h beta,  g <- a g + h beta alpha / s,  a = 1 + h beta (1/2 - 1/s),  s = alpha^2 lambda + sigma^2,
    from v = 1, g = 0. Returns the variance v (M,) and the gain g (M,): a conditional mean m comes out as g m.
    """
    t = torch.tensor(times(steps)[:-1], dtype=torch.float64)
    alpha, sigma2 = schedule.alpha(t), schedule.sigma(t) ** 2
    rates = (schedule.beta(t) / steps).tolist()
    v, g = torch.ones_like(modes.variance), torch.zeros_like(modes.variance)
    for rate, signal, noise in zip(rates, alpha.tolist(), sigma2.tolist()):
        s = signal**2 * modes.variance + noise
        a = 1 + rate * (0.5 - 1 / s)
        v, g = a * a * v + rate, a * g + rate * signal / s
    return v, g


def euler_error(bands: list[Modes], steps: int, kind: str = "worst", schedule: VPSchedule = VP) -> float:
    """How far what Euler's method makes is from the truth, each band with its data's own x_j as condition.

    'worst': the largest relative error of a mode's variance, or of its conditional mean. 'wasserstein': the squared
    2-Wasserstein distance a dimension, in the units that are diffused. 'kl': the KL divergence a dimension, in nats;
    over the bands of a cascade its sum is the joint divergence to first order.
    """
    return _error([_grouped(modes) for modes in bands], steps, kind, schedule)


def _error(groups: list[tuple[Modes, Tensor]], steps: int, kind: str, schedule: VPSchedule) -> float:
    total, dimensions, worst = 0.0, 0, 0.0
    for modes, count in groups:
        v, g = euler_output(modes, steps, schedule)
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


def steps_to_reach(error: float, bands: list[Modes], kind: str = "worst", schedule: VPSchedule = VP) -> int:
    """The least number of Euler steps, the same in every band, for at most that `euler_error` (it falls with steps).

    Raises ValueError where 2^20 steps do not suffice.
    """
    groups, high = [_grouped(modes) for modes in bands], 1
    while not _error(groups, high, kind, schedule) <= error:  # also where it is not a number
        high *= 2
        if high > MOST_STEPS:
            raise ValueError(f"an error of {error} takes more than {MOST_STEPS} Euler steps; allowed: a larger one")
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _error(groups, middle, kind, schedule) <= error else (middle, high)
    return high


def _grouped(modes: Modes) -> tuple[Modes, Tensor]:
    """Equal modes once, with how many there are: symmetry makes most of them equal."""
    pairs = torch.stack([modes.variance, modes.mean_square], 1)
    rounded = (pairs / pairs.abs().amax(0).clamp_min(1e-300) * 1e10).round()
    _, inverse, count = torch.unique(rounded, dim=0, return_inverse=True, return_counts=True)
    first = torch.empty(len(count), dtype=torch.long).scatter_(0, inverse, torch.arange(len(inverse)))
    return Modes(modes.name, modes.variance[first], modes.mean_square[first]), count


def steps_table(
    sides: list[int],
    error: float,
    kind: str = "worst",
    exponent: float = 2.0,
    wavelet: str = "haar",
    coarsest: int = 4,
) -> list[dict[str, float]]:
    """A row a side: Euler steps to `error` in pixels and in whitened wavelets, and their ratio."""
    rows = []
    for side in sides:
        spectrum = power_law(side, exponent)
        pixels = steps_to_reach(error, [pixel_modes(spectrum)], kind)
        wavelets = steps_to_reach(error, wavelet_modes(spectrum, wavelet, levels_to(side, coarsest)), kind)
        rows.append({"side": side, "pixels": pixels, "wavelets": wavelets, "ratio": pixels / wavelets})
    return rows
