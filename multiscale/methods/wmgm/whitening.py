"""Statistics of a band (mean, covariance, sparsity, condition numbers) and the affine maps that whiten it.

Images are [0, 1] numbers of 8 bits: their rounding adds noise of variance 1 / (12 255^2) to every coefficient of an
orthonormal transform. It is the least variance that can be meant, so condition numbers are taken with it added.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

ROUNDING = 1 / (12 * 255**2)
DENSE = 1024  # numbers of a band up to which its whole covariance is diagonalised
FULL = 4096  # numbers of a band up to which it can be whitened fully
FLOOR = 1e-4  # of the largest eigenvalue: what full whitening does not amplify further


class BandStatistics:
    """Streaming moments of one band about a centre (C,) near its mean, in float64; see `summary`.

    Beside the covariance of the channels it gathers that of all numbers of an image where they are few, and the
    spectral covariance: C x C for each frequency, all there is to know of a stationary band of any side.
    """

    def __init__(self, name: str, centre: Tensor):
        self.name, self.centre = name, centre.double().view(1, -1, 1, 1)
        self.count = 0
        self.sums: dict[str, Tensor] = {}

    def add(self, x: Tensor) -> None:
        """Takes in a block (N, C, h, w)."""
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
            "spectrum": torch.einsum("ncij,ndij->ijcd", waves, waves.conj()),
        }
        if x[0].numel() <= DENSE:
            vectors = x.flatten(1)
            sums |= {"vector": vectors.sum(0), "dense": vectors.T @ vectors}
        for key, value in sums.items():
            self.sums[key] = self.sums.get(key, 0) + value

    def summary(self) -> dict:
        """Mean, std, covariance of the channels; energy; kurtosis and generalised-Gaussian shape; condition numbers.

        `condition` is that of the covariance of all numbers (null where they are too many), `condition_spectral` that
        of the spectral covariance; both after each channel is divided by its standard deviation. With fewer images than
        numbers the first says what the rounding leaves. Raises ValueError
        for a band without images.
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
            "side": self.shape[-1],
            "mean": mean.tolist(),
            "std": variance.sqrt().tolist(),
            "covariance": covariance.tolist(),
            "energy": (variance + mean**2).mean().item(),  # the mean square of a number
            "kurtosis": (fourth / variance**2).tolist(),
            "shape": [gaussian_shape(v, a) for v, a in zip(variance.tolist(), m["absolute"].tolist())],
            "condition": self._dense(m, variance),
            "condition_spectral": self._spectral(m["spectrum"], shift, variance),
        }

    def _dense(self, m: dict[str, Tensor], variance: Tensor) -> float | None:
        if "dense" not in m:
            return None
        scale = variance.rsqrt().repeat_interleave(self.shape[1:].numel())
        covariance = m["dense"] - torch.outer(m["vector"], m["vector"])
        return condition_number(covariance * torch.outer(scale, scale), ROUNDING * scale**2)

    def _spectral(self, spectrum: Tensor, shift: Tensor, variance: Tensor) -> float:
        spectrum = spectrum.clone()
        spectrum[0, 0] -= torch.outer(shift, shift) * self.shape[1:].numel()
        scale = variance.rsqrt()
        return condition_number(spectrum * torch.outer(scale, scale), ROUNDING * scale**2)


def condition_number(covariance: Tensor, floor: Tensor | float = 0.0) -> float:
    """The largest over the least eigenvalue of Hermitian matrices (..., D, D), `floor` (D,) added to the diagonals."""
    floor = torch.as_tensor(floor, dtype=torch.float64).expand(covariance.shape[-1])
    eigenvalues = torch.linalg.eigvalsh(covariance + torch.diag(floor))
    return (eigenvalues.max() / eigenvalues.min().clamp_min(1e-300)).item()


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
    """z = (S + f I)^(-1/2) (x - mean) over all numbers of x (N, C, h, w), S their covariance, f a floor (ZCA).

    The square root is the symmetric one, so a whitened band still looks like an image. Raises ValueError for a band of
    more than 4096 numbers.
    """

    def __init__(self, mean: Tensor, covariance: Tensor):
        super().__init__()
        if mean.numel() > FULL:
            raise ValueError(f"full whitening of a band of {mean.numel()} numbers; allowed: at most {FULL}")
        eigenvalues, vectors = torch.linalg.eigh(covariance.double())
        root = (eigenvalues.clamp_min(0) + FLOOR * eigenvalues.max()).sqrt()
        self.register_buffer("mean", mean.float())
        self.register_buffer("whiten", (vectors / root @ vectors.T).float())
        self.register_buffer("colour", (vectors * root @ vectors.T).float())

    def forward(self, x: Tensor) -> Tensor:
        return self._apply_matrix(self.whiten, x - self.mean)

    def undo(self, z: Tensor) -> Tensor:
        """x of z."""
        return self._apply_matrix(self.colour, z) + self.mean

    @staticmethod
    def _apply_matrix(matrix: Tensor, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return (x.float().flatten(1) @ matrix).view(x.shape)


def channel_summary(blocks: Iterable[Tensor]) -> dict:
    """What `fitted` needs to know of a band that has no `summary`, from its images (N, C, h, h), read once."""
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for x in blocks:
        x = x.double()
        count, total, squares = count + len(x), total + x.mean((2, 3)).sum(0), squares + x.square().mean((2, 3)).sum(0)
        _, channels, side, _ = x.shape
    if count == 0:
        raise ValueError("a band of no images has no statistics; allowed: at least 1 image")
    mean = total / count
    std = (squares / count - mean**2).clamp_min(1e-12).sqrt()
    return {"channels": channels, "side": side, "mean": mean.tolist(), "std": std.tolist()}


def unfitted(kind: str, channels: int, side: int) -> nn.Module:
    """A map whose numbers are still to be loaded: 'scale' or 'full'."""
    if kind == "scale":
        return Scale(torch.zeros(channels), torch.ones(channels))
    return FullWhitening(torch.zeros(channels, side, side), torch.eye(channels * side**2))


def fitted(kind: str, summary: dict, blocks: Iterable[Tensor]) -> nn.Module:
    """The map that whitens a band: 'scale' from its `summary`, 'full' from its images (N, C, h, h), read once."""
    if kind == "scale":
        return Scale(torch.tensor(summary["mean"]), torch.tensor(summary["std"]))
    numbers = summary["channels"] * summary["side"] ** 2
    if numbers > FULL:
        raise ValueError(f"full whitening of a band of {numbers} numbers; allowed: at most {FULL}")
    count, total, products = 0, torch.zeros(numbers).double(), torch.zeros(numbers, numbers).double()
    for block in blocks:
        x = block.double().flatten(1)
        count, total, products = count + len(x), total + x.sum(0), products + x.T @ x
    mean = total / count
    shape = summary["channels"], summary["side"], summary["side"]
    return FullWhitening(mean.view(shape), products / count - torch.outer(mean, mean))
