"""MSF's decomposition: base and residual latents (Algorithm 1) and input priors (Algorithm 2), arXiv 2501.13349.

Up is bilinear to the full resolution, Down bilinear and antialiased to the resolution of a scale. At the full
resolution both are the identity.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from multiscale.core.resize import bilinear_to


def decompose(full: Tensor, base: Tensor, resolutions: Sequence[int]) -> list[Tensor]:
    """Splits latents into a base and residuals (Algorithm 1).

    full (N, C, h, h) holds the latents z of images, base (N, C, h_0, h_0) those of the images downsampled in pixels;
    resolutions are h_0 < ... < h_K = h. Returns y_k (N, C, h_k, h_k) with sum_k Up(y_k) = z; one resolution gives [z].
    """
    if len(resolutions) == 1:
        return [full]
    targets = [base]
    rest = full - bilinear_to(base, resolutions[-1])
    for resolution in resolutions[1:]:
        targets.append(bilinear_to(rest, resolution))
        rest = rest - bilinear_to(targets[-1], resolutions[-1])
    return targets


def accumulate(targets: Sequence[Tensor], resolution: int) -> Tensor:
    """F = sum_k Up(y_k) at the full resolution: the latent so far, and z itself once all targets are in it."""
    return torch.stack([bilinear_to(target, resolution) for target in targets]).sum(0)


def prior(targets: Sequence[Tensor], resolution: int, full_resolution: int) -> Tensor:
    """p_k = Down_k(sum_{j<k} Up(y_j)): the latent before scale k, at the resolution of scale k (Algorithm 2)."""
    return bilinear_to(accumulate(targets, full_resolution), resolution)
