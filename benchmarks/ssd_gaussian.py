"""What SSD's changes of resolution cost by themselves: its transitions with the exact denoiser of Gaussian images.

python -m benchmarks.ssd_gaussian          # 28 steps on a Gaussian field with the covariance of the recipe's images

For Gaussian images the exact prediction E[R_{0:s} x_0 | x_t] is affine, so mean and covariance of the whole chain are
propagated in closed form. Two figures of its images: the share of the variance kept in the 20 largest modes of the
data, and the squared 2-Wasserstein distance to the data, as a share of the data's variance. Without a network, guidance
or clipping: no training can bring back what is lost here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.common import save
from multiscale.core.pixels import to_signed
from multiscale.core.storage import Table
from multiscale.methods.ssd.process import CLEAN, ScaleSpace, ScaleSpaceProcess, respaced
from multiscale.methods.ssd.resizing import Transition
from stages.common.paths import DECOMPOSED

MODES = 20
VARIANTS = {  # levels, gamma, noise_factor
    "1 level": (1, 0.5, 1.0),
    "2 levels": (2, 0.5, 1.0),
    "4 levels": (4, 0.5, 1.0),
    "4 levels, sigma times 0.505 a halving": (4, 0.5, 0.505),
    "4 levels, exponent 0.25": (4, 0.25, 1.0),
    "4 levels, both": (4, 0.25, 0.505),
}


def chain(process: ScaleSpace, steps: int, eta: float, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D) of what ancestral sampling makes with the exact denoiser; D = resolution^2."""
    states = [CLEAN, *respaced(process, steps)]
    at = states[-1]
    made_mean = mean.new_zeros(process.resolution(at) ** 2)
    made = torch.eye(len(made_mean), dtype=torch.float64) * process.sigma(at) ** 2
    for s, t in zip(states[-2::-1], states[:0:-1]):
        move = process.transition(s, t, eta)
        before, after = process.resolution(t), process.resolution(s)
        low, high = (
            _matrix(partial(process.shrink, resolution=resolution), process.resolutions[0])
            for resolution in (before, after)
        )
        signal, noise = process.signal(t), process.sigma(t) ** 2
        # E[R_s x_0 | x_t] = R_s m + gain (x_t - a R_t m)
        seen = signal**2 * low @ covariance @ low.T + noise * torch.eye(len(low), dtype=torch.float64)
        gain = torch.linalg.solve(seen, signal * low @ covariance @ high.T).T
        of_state = _matrix(partial(_mean, move, clean_resolution=after), before)
        of_clean = _matrix(partial(_mean, move, state_resolution=before), after)
        root = _matrix(move.root, after) if move.needs_noise else torch.zeros_like(of_clean)
        step = of_state + of_clean @ gain
        made_mean = step @ made_mean + of_clean @ (high @ mean - gain @ (signal * low @ mean))
        made = step @ made @ step.T + root @ root.T
    return made_mean, made


def _mean(
    move: Transition, x: Tensor, state_resolution: int | None = None, clean_resolution: int | None = None
) -> Tensor:
    """The mean of the next state, linear in state and clean image; the one whose resolution is given is zero."""
    zero = x.new_zeros(len(x), 1, *[state_resolution or clean_resolution] * 2)
    return move.mean(zero, x) if state_resolution else move.mean(x, zero)


def _matrix(linear: Callable[[Tensor], Tensor], resolution: int) -> Tensor:
    """The matrix of a linear map of images of a resolution."""
    basis = torch.eye(resolution**2, dtype=torch.float64).view(-1, 1, resolution, resolution)
    return linear(basis).flatten(1).T.contiguous()


def figures(made_mean: Tensor, made: Tensor, mean: Tensor, covariance: Tensor) -> dict[str, float]:
    """The share of variance kept in the largest modes, and the squared Wasserstein distance over the variance."""
    values, vectors = torch.linalg.eigh(covariance)
    top = vectors[:, -MODES:]
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ made @ root).clamp_min(0).sqrt().sum()
    distance = (made_mean - mean).square().sum() + made.trace() + covariance.trace() - 2 * cross
    return {
        "kept": ((top.T @ made @ top).trace() / values[-MODES:].sum()).item(),
        "wasserstein": (distance / covariance.trace()).item(),
        "wasserstein_pixel": (distance / len(mean)).item(),
    }


def main(steps: int = 28, eta: float = 1.0) -> None:
    pixels = Table.open(DECOMPOSED / "pixels" / "targets.safetensors", "pixels")
    images = to_signed(pixels[slice(None)]["pixels"]).double().mean(1)
    resolution, rows = images.shape[-1], images.flatten(1)
    mean, covariance = rows.mean(0), torch.cov(rows.T)
    found = {}
    for name, (levels, gamma, factor) in VARIANTS.items():
        process = ScaleSpaceProcess(levels=levels, gamma=gamma, noise_factor=factor).build(resolution)
        found[name] = figures(*chain(process, steps, eta, mean, covariance), mean, covariance)
        print(name, found[name], flush=True)
    save(
        f"ssd_gaussian-{steps}",
        {"steps": steps, "eta": eta, "resolution": resolution, "images": len(rows), "variants": found},
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
