"""Normalisation of each channel to zero mean and unit variance."""

from __future__ import annotations

from torch import Tensor

from multiscale.core.pixels import per_channel
from multiscale.core.settings import Section


class Normalisation(Section):
    """(x - shift) / scale, channel by channel."""

    shift: list[float]
    """mean of each channel"""
    scale: list[float]
    """standard deviation of each channel"""

    @property
    def channels(self) -> int:
        """The number of channels."""
        return len(self.shift)

    def apply(self, x: Tensor) -> Tensor:
        """Normalises x (N, C, h, h)."""
        return (x - per_channel(self.shift).to(x)) / per_channel(self.scale).to(x)

    def undo(self, x: Tensor) -> Tensor:
        """Undoes `apply`."""
        return x * per_channel(self.scale).to(x) + per_channel(self.shift).to(x)
