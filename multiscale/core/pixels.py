"""The three ranges of pixel values: uint8 on disk, [-1, 1] in networks, [0, 1] as samplers return them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def to_signed(pixels: Tensor) -> Tensor:
    """uint8 pixels -> float in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def to_unit(images: Tensor) -> Tensor:
    """Images in [-1, 1] -> [0, 1], clipped."""
    return ((images.float() + 1) / 2).clamp(0, 1)


def to_pixels(images: Tensor) -> Tensor:
    """Images in [0, 1] -> uint8 pixels on the CPU. Raises FloatingPointError for NaN, which would be black."""
    if not images.isfinite().all():
        raise FloatingPointError("an image is not finite: the weights or the settings of the sampler make NaN of noise")
    return (images * 255).round().to(torch.uint8).cpu()


def per_channel(values: Sequence[float]) -> Tensor:
    """One value a channel, shaped (1, C, 1, 1)."""
    return torch.tensor(values).view(1, -1, 1, 1)
