"""Statistics of a band (mean, covariance, sparsity, condition numbers) and the affine maps that whiten it.

Images are 8-bit numbers in [0, 1]: rounding adds noise of variance 1 / (12 255^2) to every coefficient of an
orthonormal transform. No smaller variance carries information, so condition numbers are those of the sum with it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from multiscale.core.device import full_precision
from multiscale.core.normalisation import Normalisation

Kind = Literal["scale", "full"]
ROUNDING = 1 / (12 * 255**2)
DENSE = 1024  # numbers of a band up to which its whole covariance is diagonalised
FULL = 4096  # numbers of a band up to which it can be whitened fully
FLOOR = 1e-4  # added to the eigenvalues by full whitening, as a share of the largest: limits the amplification


class BandStatistics:
    """Streaming moments of one band about a centre (C,) near its mean, in float64; see `summary`.

    Beside the covariance of the channels it accumulates that of all numbers of an image where they are few, and the
    spectral covariance, C x C for each frequency, about the mean image. Of a stationary band it holds the eigenvalues
    of the whole covariance, at any resolution; of another it leaves out how the frequencies vary together.
    """

    def __init__(self, name: str, centre: Tensor):
        self.name, self.centre = name, centre.double().view(1, -1, 1, 1)
        self.count = 0
        self.sums: dict[str, Tensor] = {}

    def add(self, x: Tensor) -> None:
        """Accumulates a block (N, C, h, w)."""
        x = x.double() - self.centre
        self.shape = x.shape[1:]
        self.count += len(x)
        flat, places = x.flatten(2), x[0, 0].numel()
        waves = torch.fft.fft2(x, norm="ortho")
        sums = {
            "first": flat.sum((0, 2)) / places,
            "products": torch.einsum("nci,ndi->cd", flat, flat) / places,
            "absolute": flat.abs().sum((0, 2)) / places,
            "third": (flat**3).sum((0, 2)) / places,
            "fourth": (flat**4).sum((0, 2)) / places,
            "waves": waves.sum(0),
            "spectrum": torch.einsum("ncij,ndij->ijcd", waves, waves.conj()),
        }
        if x[0].numel() <= DENSE:
            vectors = x.flatten(1)
            sums |= {"vector": vectors.sum(0), "dense": vectors.T @ vectors}
        for key, value in sums.items():
            self.sums[key] = self.sums[key] + value if key in self.sums else value

    def summary(self) -> dict[str, Any]:
        """Mean, std, covariance of the channels; energy; kurtosis and generalised-Gaussian shape; condition numbers.

        `condition` is that of the covariance of all numbers (null where they are too many), `condition_spectral` that
        of the spectral covariance; both after each channel is divided by its standard deviation. With fewer images than
        numbers the first is bounded by the rounding alone. Raises ValueError for a band without images.
        """
        if self.count == 0:
            raise ValueError(f"the band {self.name} has no images; allowed: at least 1")
        m = {key: value / self.count for key, value in self.sums.items()}
        shift = m["first"]
        covariance = m["products"] - torch.outer(shift, shift)
        variance = covariance.diagonal().clamp_min(1e-12)
        fourth = m["fourth"] - 4 * shift * m["third"] + 6 * shift**2 * m["products"].diagonal() - 3 * shift**4
        mean = self.centre.flatten() + shift
        return {
            "channels": self.shape[0],
            "resolution": self.shape[-1],
            "mean": mean.tolist(),
            "std": variance.sqrt().tolist(),
            "covariance": covariance.tolist(),
            "energy": (variance + mean**2).mean().item(),  # the mean square of a number
            "kurtosis": (fourth / variance**2).tolist(),
            "shape": [gaussian_shape(v, a) for v, a in zip(variance.tolist(), m["absolute"].tolist())],
            "condition": self._dense(m, variance),
            "condition_spectral": self._spectral(m["spectrum"], m["waves"], variance),
        }

    def _dense(self, m: dict[str, Tensor], variance: Tensor) -> float | None:
        if "dense" not in m:
            return None
        scale = variance.rsqrt().repeat_interleave(self.shape[1:].numel())
        covariance = m["dense"] - torch.outer(m["vector"], m["vector"])
        return condition_number(covariance * torch.outer(scale, scale), ROUNDING * scale**2)

    @staticmethod
    def _spectral(products: Tensor, mean: Tensor, variance: Tensor) -> float:
        covariance = products - torch.einsum("cij,dij->ijcd", mean, mean.conj())
        scale = variance.rsqrt()
        return condition_number(covariance * torch.outer(scale, scale), ROUNDING * scale**2)


def condition_number(covariance: Tensor, floor: Tensor) -> float:
    """The largest over the least eigenvalue of Hermitian matrices (..., D, D), `floor` (D,) added to the diagonals."""
    eigenvalues = torch.linalg.eigvalsh(covariance + torch.diag(floor))
    return float(eigenvalues.max() / eigenvalues.min().clamp_min(1e-300))


def gaussian_shape(variance: float, absolute: float) -> float:
    """The exponent b of the generalised Gaussian exp(-|x/a|^b) with this variance and mean |x| (2 Gaussian, 1 Laplace).

    Solves E x^2 / (E |x|)^2 = Gamma(1/b) Gamma(3/b) / Gamma(2/b)^2 for b in [0.05, 20] (Mallat 1989).
    """
    wanted = math.log(max(variance, 1e-300)) - 2 * math.log(max(absolute, 1e-150))
    low, high = 0.05, 20.0
    for _ in range(60):
        b = math.sqrt(low * high)
        found = math.lgamma(1 / b) + math.lgamma(3 / b) - 2 * math.lgamma(2 / b)
        low, high = (b, high) if found > wanted else (low, b)
    return math.sqrt(low * high)


class Scale(nn.Module):
    """z = (x - mean) / std for each channel of x (N, C, h, w)."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Tensor, std: Tensor):
        super().__init__()
        self.register_buffer("mean", mean.float().view(-1, 1, 1))
        self.register_buffer("std", std.float().view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def undo(self, z: Tensor) -> Tensor:
        """x of z."""
        return z * self.std + self.mean


class FullWhitening(nn.Module):
    """z = W (x - mean) over all numbers of x (N, C, h, w), for matrices W and its inverse; see `fully_whitened`."""

    mean: Tensor
    whiten: Tensor
    colour: Tensor

    def __init__(self, mean: Tensor, whiten: Tensor, colour: Tensor):
        super().__init__()
        self.register_buffer("mean", mean.float())
        self.register_buffer("whiten", whiten.float())
        self.register_buffer("colour", colour.float())

    def forward(self, x: Tensor) -> Tensor:
        return self._apply_matrix(self.whiten, x - self.mean)

    def undo(self, z: Tensor) -> Tensor:
        """x of z."""
        return self._apply_matrix(self.colour, z) + self.mean

    @staticmethod
    def _apply_matrix(matrix: Tensor, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False), full_precision():
            return (x.float().flatten(1) @ matrix).view(x.shape)


Whitening = Scale | FullWhitening


def unfitted(kind: Kind, channels: int, resolution: int) -> Whitening:
    """A map of a band (C, h, h) whose buffers are still to be loaded."""
    if kind == "scale":
        return Scale(torch.zeros(channels), torch.ones(channels))
    mean = torch.zeros(channels, resolution, resolution)
    return FullWhitening(mean, *torch.zeros(2, mean.numel(), mean.numel()))


def scaled(normalisation: Normalisation) -> Scale:
    """The map that whitens each channel of a band alone."""
    return Scale(torch.tensor(normalisation.shift), torch.tensor(normalisation.scale))


def fully_whitened(shape: tuple[int, int, int], blocks: Iterable[Tensor]) -> FullWhitening:
    """W = (S + f I)^(-1/2) for the covariance S of a band of a shape (C, h, h) and a floor f (ZCA whitening).

    From its images (N, C, h, h), read once. The square root is the symmetric one, so that a whitened band still looks
    like an image. Raises ValueError for a band of more than 4096 numbers.
    """
    numbers = math.prod(shape)
    if numbers > FULL:
        raise ValueError(f"full whitening of a band of {numbers} numbers; allowed: at most {FULL}")
    count, total, products = 0, torch.zeros(numbers).double(), torch.zeros(numbers, numbers).double()
    for block in blocks:
        x = block.double().flatten(1)
        count, total, products = count + len(x), total + x.sum(0), products + x.T @ x
    mean = total / count
    eigenvalues, vectors = torch.linalg.eigh(products / count - torch.outer(mean, mean))
    root = (eigenvalues.clamp_min(0) + FLOOR * eigenvalues.max()).sqrt()
    return FullWhitening(mean.view(shape), vectors / root @ vectors.T, vectors * root @ vectors.T)
