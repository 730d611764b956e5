"""The piecewise flow: a segment for each resolution, and the jumps between them (docs/pyramidal-flow.md).

A level of noise is 1 for noise and 0 for data. Resolutions double from segment to segment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from multiscale import flow

FACTOR = 2


def up(x: Tensor) -> Tensor:
    """x (N, C, h, h) -> (N, C, 2h, 2h): each value fills a 2x2 block."""
    return F.interpolate(x, scale_factor=FACTOR, mode="nearest")


def down(x: Tensor) -> Tensor:
    """x (N, C, 2h, 2h) -> (N, C, h, h): the mean of each 2x2 block."""
    return F.avg_pool2d(x, FACTOR)


def pyramid(z: Tensor, segments: int) -> list[Tensor]:
    """The latents z_0 ... z_K of as many segments, coarsest first; the last is z (N, C, h, h) itself."""
    found = [z]
    while len(found) < segments:
        found.insert(0, down(found[0]))
    return found


@dataclass(frozen=True)
class Segment:
    """A part of the flow at one resolution, between two levels of noise."""

    start: float
    end: float

    def level(self, u: Tensor) -> Tensor:
        """The level of noise at the place u of the segment, 1: its start, 0: its end."""
        return u * self.start + (1 - u) * self.end

    def points(self, z: Tensor, coarser: Tensor | None, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Start and end of the path of a latent z with this noise; `coarser`: the latent of the segment before."""
        start = self.start * noise
        if coarser is not None:
            start = start + (1 - self.start) * up(coarser)
        return start, (1 - self.end) * z + self.end * noise


def segments(jumps: Sequence[float]) -> list[Segment]:
    """The segments whose ends, but for the last, are the levels `jumps`."""
    starts = [1.0, *(flow.shifted(end, FACTOR) for end in jumps)]
    return [Segment(start, end) for start, end in zip(starts, [*jumps, 0.0])]


def jump(x: Tensor, before: Segment, after: Segment, noise: Tensor | None) -> Tensor:
    """The start of a segment from the end x (N, C, h, h) of the one before.

    noise (N, C, 2h, 2h) is white, of unit variance; only its details are added, since x brings the means of the blocks.
    None leaves them out, an ablation.
    """
    gain = (1 - after.start) / (1 - before.end)
    enlarged = gain * up(x)
    return enlarged if noise is None else enlarged + after.start * (noise - up(down(noise)))
