"""At which resolution and which level of noise each step runs (docs/resolution-shift.md).

A level of noise is 1 for noise and 0 for data, the time of a rectified flow.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator
from torch import Tensor

from multiscale import flow
from multiscale.core.resize import bicubic_to
from multiscale.core.settings import Bad, Positive, Section

ROUNDING = 1e-6  # the times of steps are fp32: 0.8 is a little more than the level 0.8


class Schedule(Section):
    """The resolutions of a sampling, and from which level of noise on each is used."""

    resolutions: Annotated[list[Positive], Field(min_length=2)]
    """in pixels, growing to the full one"""
    levels: Annotated[list[float], Field(min_length=2)]
    """noise at the full resolution from which each is used, falling from 1"""

    @model_validator(mode="after")
    def _check(self) -> Schedule:
        resolutions, levels = self.resolutions, self.levels
        if resolutions != sorted(set(resolutions)):
            raise Bad("resolutions", resolutions, "resolutions that grow")
        if len(levels) != len(resolutions):
            raise Bad("levels", levels, f"one for each resolution ({len(resolutions)})")
        if levels[0] != 1 or levels != sorted(set(levels), reverse=True) or levels[-1] <= 0:
            raise Bad("levels", levels, "levels of noise that fall from 1 and stay above 0")
        return self

    def at(self, level: float) -> int:
        """The resolution of a step at this level of noise: that of the lowest level which is not below it."""
        reached = level - ROUNDING
        return [each for each, first in zip(self.resolutions, self.levels) if reached <= first][-1]


def corrected(level: Tensor, ratio: float) -> Tensor:
    """The level with the same noise in the image at `ratio` times the resolution (arXiv 2403.03206, eq. 23).

    Means of ratio^2 pixels divide white noise by the ratio, and leave an image as it is.
    """
    return flow.shifted(level, ratio)


def enlarged(clean: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """A clean latent (N, C, h, h) at the size of white noise (N, C, H, H), with noise of that level."""
    return (1 - level) * bicubic_to(clean, noise.shape[-1]) + level * noise
