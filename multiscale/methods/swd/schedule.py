"""SwD's schedules: at which noise and at which side each step of a few-step generator runs (arXiv 2503.16397).

Noise sigma in [0, 1] is the time of a rectified flow. All noise is taken from one fine grid, the 28 steps of Stable
Diffusion 3.5 with its time shift of 3, and is addressed by its index there, as in the released code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

STEPS = 28  # of the fine grid
SHIFT = 3.0
DMD_RANGE, MMD_RANGE, FAKE_RANGE = (12, STEPS), (18, STEPS), (0, STEPS)  # half-open; the GAN shares DMD's
BOUNDARIES = {4: (0, 7, 14, 18), 6: (0, 4, 7, 12, 14, 18)}  # of few-step generators

#                        1000 t                           sides of the latents
PUBLISHED = {
    "SDXL":             ((1000, 800, 600, 400),           (64, 80, 96, 128)),
    "SD3.5-M":          ((1000, 945, 896, 790, 737, 602), (32, 48, 64, 80, 96, 128)),
    "SD3.5-M 4 steps":  ((1000, 896, 737, 602),           (64, 80, 96, 128)),
    "SD3.5-M 2025":     ((1000, 945, 790, 602),           (32, 64, 96, 128)),
    "SD3.5-L":          ((1000, 896, 737, 602),           (64, 80, 96, 128)),
    "FLUX":             ((1000, 945, 790, 602),           (32, 64, 96, 128)),
    "FLUX released":    ((1000, 896, 736, 601),           (64, 80, 96, 128)),
}  # fmt: skip
VARIANCE_PRESERVING = ("SDXL",)  # its times are steps of another process: over 1000 they are no sigma of a flow
FACTOR = 8  # pixels a cell of these models' latents


def shifted(u: Tensor, shift: float = SHIFT) -> Tensor:
    """The time shift s u / (1 + (s - 1) u), which spends more of the grid on much noise (arXiv 2403.03206)."""
    return shift * u / (1 + (shift - 1) * u)


@lru_cache(maxsize=8)
def sigma_grid(shift: float = SHIFT, steps: int = STEPS) -> Tensor:
    """sigma_0 = 1 > ... > sigma_{steps-1} (float64). Its end point is shifted once before the grid is, as released."""
    end = shifted(torch.tensor(0.001, dtype=torch.float64), shift).item()
    return shifted(torch.linspace(1, end, steps, dtype=torch.float64), shift)


@dataclass(frozen=True)
class Schedule:
    """Step k runs at noise sigmas[k] and side sides[k]. Raises ValueError for what no generator can follow."""

    sides: tuple[int, ...]
    sigmas: tuple[float, ...]

    def __post_init__(self) -> None:
        sides, sigmas = list(self.sides), list(self.sigmas)
        if len(sides) != len(sigmas):
            raise ValueError(f"sigmas: {len(sigmas)} noise levels for {len(sides)} sides; allowed: one for each side")
        if not all(0 < sigma <= 1 for sigma in sigmas):
            raise ValueError(f"sigmas: {sigmas}; allowed: noise levels in (0, 1]")
        if sigmas[0] != 1 or sigmas != sorted(set(sigmas), reverse=True):
            raise ValueError(f"sigmas: {sigmas}; allowed: noise levels that fall from 1, pure noise")
        if sides != sorted(sides):
            raise ValueError(f"sides: {sides}; allowed: sides that never shrink from step to step")

    @property
    def cost(self) -> float:
        """Tokens of all steps, relative to as many steps at the last side: sum s_k^2 / (N s_N^2)."""
        return sum(side**2 for side in self.sides) / (len(self.sides) * self.sides[-1] ** 2)

    def low(self, k: int) -> int:
        """The side that step k comes from: that of the step before, and the first step's own."""
        return self.sides[max(0, k - 1)]


def published(name: str) -> Schedule:
    """The schedule of a published model, in sides of its latents."""
    times, sides = PUBLISHED[name]
    return Schedule(sides, tuple(time / 1000 for time in times))


def few_steps(steps: int, sides: Sequence[int], shift: float = SHIFT) -> Schedule:
    """A schedule with the published noise levels of 4 or 6 steps."""
    grid = sigma_grid(shift)
    return Schedule(tuple(sides), tuple(grid[index].item() for index in BOUNDARIES[steps]))
