"""How the noisy input of a step is made from a smaller clean latent (SwD, arXiv 2503.16397, tables 1 and 11).

A  noise the true latent of the full resolution (the bound: no smaller latent is used)
B  enlarge the clean latent, then noise it: noise of variance sigma^2 without correlation, SwD's own
C  noise the small latent, then enlarge: the control, whose noise is too weak and correlated between neighbours
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from multiscale.core.resize import bicubic_to

Strategy = Literal["A", "B", "C"]


def noisy(
    low: Tensor, resolution: int, sigma: float, draw: Callable[[tuple[int, ...]], Tensor], strategy: Strategy
) -> Tensor:
    """x_sigma (N, C, resolution, resolution) from a clean latent `low`; for A this is the true latent.

    draw(shape) gives unit noise of a shape (C, h, h) for each image.
    """
    if strategy == "C":
        return bicubic_to((1 - sigma) * low + sigma * draw(tuple(low.shape[1:])), resolution)
    clean = bicubic_to(low, resolution)
    return (1 - sigma) * clean + sigma * draw(tuple(clean.shape[1:]))
