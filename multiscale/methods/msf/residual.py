"""MSF's decomposition: base and residual latents (Algorithm 1) and the input priors (Algorithm 2), arXiv 2501.13349.

Up is bilinear to the full side, Down bilinear antialiased to a scale's side; both are the identity at the full side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from multiscale.core.resize import bilinear_to


def decompose(full: Tensor, base: Tensor, sides: Sequence[int]) -> list[Tensor]:
    """Splits latents into base and residuals (Algorithm 1).

    full (N, C, h, h) is the latent z of the image, base (N, C, sides[0], sides[0]) the latent of the image downsampled
    in pixels; sides grow to h. Returns y_k (N, C, sides[k], sides[k]) with sum_k Up(y_k) = z. One scale gives [z].
    """
    if len(sides) == 1:
        return [full]
    targets = [base]
    rest = full - bilinear_to(base, sides[-1])
    for side in sides[1:]:
        targets.append(bilinear_to(rest, side))
        rest = rest - bilinear_to(targets[-1], sides[-1])
    return targets


def accumulate(targets: Sequence[Tensor], side: int) -> Tensor:
    """F = sum_k Up(y_k) at the full side: the latent so far, and with all targets z itself."""
    return torch.stack([bilinear_to(target, side) for target in targets]).sum(0)


def prior(targets: Sequence[Tensor], side: int, full_side: int) -> Tensor:
    """p_k = Down_k(sum_{j<k} Up(y_j)): everything before scale k, brought to its side (Algorithm 2)."""
    return bilinear_to(accumulate(targets, full_side), side)
