"""Streaming per-channel moments."""

from __future__ import annotations

import torch
from torch import Tensor


class Moments:
    """The mean and standard deviation of each channel, accumulated block by block in float64."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, x: Tensor) -> None:
        """Adds a block (N, C, h, h)."""
        self.include(*self.of(x))

    @staticmethod
    def of(x: Tensor) -> tuple[int, list[float], list[float]]:
        """What `include` takes of a block (N, C, h, h): the elements of a channel, their sums and those of squares."""
        x = x.double()
        return x.numel() // x.shape[1], x.sum((0, 2, 3)).tolist(), x.square().sum((0, 2, 3)).tolist()

    def include(self, count: int, total: list[float], squares: list[float]) -> None:
        """Adds what another process has summed of a block."""
        self.count += count
        self.total = self.total + torch.tensor(total, dtype=torch.float64)
        self.squares = self.squares + torch.tensor(squares, dtype=torch.float64)

    def mean(self) -> list[float]:
        """The mean of each channel."""
        return (self.total / self.count).tolist()

    def std(self) -> list[float]:
        """The standard deviation of each channel, at least 1e-6 so that it can be divided by."""
        mean = self.total / self.count
        return (self.squares / self.count - mean.square()).clamp_min(1e-12).sqrt().tolist()

    def energy(self) -> float:
        """The mean square of an element."""
        return (self.squares.sum() / (self.count * len(self.squares))).item()
