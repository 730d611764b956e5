"""How a step's noisy input is made from a smaller clean latent (SwD, arXiv 2503.16397, table 1).

A  noise the true latent of the full side (the bound: no smaller latent is used)
B  enlarge the clean latent, then noise it: noise of variance sigma^2 without correlation, SwD's own
C  noise the small latent, then enlarge: the control, whose noise is too weak and correlated between neighbours
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from multiscale.core.resize import bicubic_to

STRATEGIES = ("A", "B", "C")


def noisy(low: Tensor, side: int, sigma: float, draw: Callable[[tuple[int, ...]], Tensor], strategy: str) -> Tensor:
    """x_sigma (N, C, side, side) from a clean latent `low`; for A give the true latent of that side itself.

    draw(shape) gives unit noise of a shape (C, h, h) for each image.
    """
    if strategy == "C":
        return bicubic_to((1 - sigma) * low + sigma * draw(tuple(low.shape[1:])), side)
    clean = bicubic_to(low, side)
    return (1 - sigma) * clean + sigma * draw(tuple(clean.shape[1:]))
