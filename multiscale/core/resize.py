"""The resizes of the project, one definition each: training, priors and sampling must agree on them to the bit."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bilinear_to(x: Tensor, side: int) -> Tensor:
    """x (N, C, h, h) -> (N, C, side, side): bilinear, half-pixel centres, antialiased when it shrinks."""
    if x.shape[-1] == side:
        return x
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False, antialias=side < x.shape[-1])


def bicubic_to(x: Tensor, side: int) -> Tensor:
    """x (N, C, h, h) -> (N, C, side, side): bicubic (a = -0.75), half-pixel centres, no antialiasing."""
    if x.shape[-1] == side:
        return x
    return F.interpolate(x, size=(side, side), mode="bicubic", align_corners=False)


def area_to(x: Tensor, side: int) -> Tensor:
    """x (N, C, h, h) -> (N, C, side, side) by averaging areas, the way an image is downsampled in pixels."""
    if x.shape[-1] == side:
        return x
    return F.interpolate(x, size=(side, side), mode="area")
