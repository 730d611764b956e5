"""Image resizing, defined once: training, priors and sampling must agree bit for bit."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def bilinear_to(x: Tensor, resolution: int) -> Tensor:
    """x (N, C, h, h) -> (N, C, resolution, resolution): bilinear, half-pixel centres, antialiased when shrinking."""
    if x.shape[-1] == resolution:
        return x
    return F.interpolate(
        x, size=(resolution, resolution), mode="bilinear", align_corners=False, antialias=resolution < x.shape[-1]
    )


def bicubic_to(x: Tensor, resolution: int) -> Tensor:
    """x (N, C, h, h) -> (N, C, resolution, resolution): bicubic (a = -0.75), half-pixel centres, no antialiasing."""
    if x.shape[-1] == resolution:
        return x
    return F.interpolate(x, size=(resolution, resolution), mode="bicubic", align_corners=False)


def area_to(x: Tensor, resolution: int) -> Tensor:
    """x (N, C, h, h) -> (N, C, resolution, resolution) by averaging over areas, as torch's and SwD's mode 'area' does.

    Where the ratio is no whole number, all pixels that an area touches weigh the same in its mean.
    """
    if x.shape[-1] == resolution:
        return x
    return F.interpolate(x, size=(resolution, resolution), mode="area")
