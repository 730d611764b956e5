"""SwD's schedules: at which noise and at which resolution each step of a few-step generator runs (arXiv 2503.16397).

Noise sigma in [0, 1] is the time of a rectified flow. All noise levels come from one fine grid, the 28 steps of Stable
Diffusion 3.5 with its time shift of 3, and are addressed by their index there, as in the released code.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any

import torch
from pydantic import Field, model_validator
from torch import Tensor

from multiscale.core.settings import Bad, Positive, Section, preset
from multiscale.flow import shifted

STEPS = 28  # of the fine grid
SHIFT = 3.0
DMD_RANGE, MMD_RANGE, FAKE_RANGE = (12, STEPS), (18, STEPS), (0, STEPS)  # half-open; the GAN shares DMD's
BOUNDARIES = {4: (0, 7, 14, 18), 6: (0, 4, 7, 12, 14, 18)}  # of few-step generators

# Schedules of rectified flows. SDXL's are the timesteps 1000, 800, 600 and 400 of its variance-preserving process, with
# the noise sigma / (alpha + sigma) as a flow; the first is pure noise.
#                        1000 t                           resolutions of the latents
PUBLISHED = {
    "SD3.5-M":          ((1000, 945, 896, 790, 737, 602), (32, 48, 64, 80, 96, 128)),
    "SD3.5-M 4 steps":  ((1000, 896, 737, 602),           (64, 80, 96, 128)),
    "SD3.5-M 2025":     ((1000, 945, 790, 602),           (32, 64, 96, 128)),
    "SD3.5-L":          ((1000, 896, 737, 602),           (64, 80, 96, 128)),
    "FLUX":             ((1000, 945, 790, 602),           (32, 64, 96, 128)),
    "FLUX released":    ((1000, 896, 736, 601),           (64, 80, 96, 128)),
    "SDXL":             ((1000, 836.4, 695.6, 538.0),     (64, 80, 96, 128)),
}  # fmt: skip
FACTOR = 8  # of these models' autoencoders
PRESETS = {  # the same in pixels
    name: (tuple(FACTOR * resolution for resolution in resolutions), tuple(time / 1000 for time in times))
    for name, (times, resolutions) in PUBLISHED.items()
}


class Schedule(Section):
    """The student's steps: step k runs at noise sigmas[k] and resolutions[k]; `preset: NAME` stands for both."""

    resolutions: Annotated[list[Positive], Field(min_length=1)]
    """of each step in pixels, growing to the full one"""
    sigmas: Annotated[list[float], Field(min_length=1)]
    """noise level of each step, falling from 1"""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return preset(value, PRESETS, ("resolutions", "sigmas"))

    @model_validator(mode="after")
    def _check(self) -> Schedule:
        resolutions, sigmas = self.resolutions, self.sigmas
        if len(resolutions) != len(sigmas):
            raise Bad("sigmas", sigmas, f"one for each resolution ({len(resolutions)})")
        if not all(0 < sigma <= 1 for sigma in sigmas):
            raise Bad("sigmas", sigmas, "noise levels in (0, 1]")
        if sigmas[0] != 1 or sigmas != sorted(set(sigmas), reverse=True):
            raise Bad("sigmas", sigmas, "noise levels that fall from 1, pure noise")
        if resolutions != sorted(resolutions):
            raise Bad("resolutions", resolutions, "resolutions that never shrink from step to step")
        return self

    @property
    def cost(self) -> float:
        """Tokens of all steps, relative to as many steps at the last resolution: sum s_k^2 / (N s_N^2)."""
        tokens = [resolution**2 for resolution in self.resolutions]
        return sum(tokens) / (len(tokens) * tokens[-1])

    def on(self, grids: Mapping[str, int]) -> Schedule:
        """The same on the latents; grids: resolution in pixels -> that of its latents."""
        return Schedule(resolutions=[grids[str(each)] for each in self.resolutions], sigmas=self.sigmas)

    def low(self, k: int) -> int:
        """The resolution of the latent that step k starts from: that of the step before, or the first step's own."""
        return self.resolutions[max(0, k - 1)]


@lru_cache(maxsize=8)
def sigma_grid(shift: float = SHIFT) -> Tensor:
    """sigma_0 = 1 > ... > sigma_27 (float64). Its end point is shifted once before the grid is, as released."""
    end = shifted(torch.tensor(0.001, dtype=torch.float64), shift).item()
    return shifted(torch.linspace(1, end, STEPS, dtype=torch.float64), shift)


def few_steps(steps: int) -> list[float]:
    """The published noise levels of 4 or 6 steps."""
    return sigma_grid()[list(BOUNDARIES[steps])].tolist()
