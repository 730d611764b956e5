"""Classifier-free guidance (arXiv 2207.12598): label dropout in training, mixed predictions in sampling.

A network is conditioned on a class label, and where there is one, on an image concatenated to its input.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from multiscale.core.streams import Draws

Predict = Callable[[Tensor, Tensor], Tensor]  # (x (N,C,h,h), t (N,)) -> prediction (N,C,h,h)
Conditional = Callable[[Tensor, Tensor, Tensor | None], Tensor]  # the same with labels (N,) or None


def drop_labels(labels: Tensor, null: int | None, share: float, draws: Draws) -> Tensor | None:
    """Replaces a share of the labels (N,) by the label of 'no class'; None for a network without classes."""
    if null is None:
        return None
    return torch.where(draws.uniform("label") < share, null, labels)


def concatenated(network: Conditional, condition: Tensor | None) -> Conditional:
    """Concatenates a condition (N, C, h, h), if any, to the network's input; repeated for a guided batch of 2N."""
    if condition is None:
        return network
    return lambda x, t, c: network(torch.cat([x, condition.repeat(len(x) // len(condition), 1, 1, 1)], 1), t, c)


def guided(network: Conditional, labels: Tensor, null: int | None, scale: float) -> Predict:
    """u_null + w (u_class - u_null) for a guidance scale w (arXiv 2207.12598, eq. 6 with w = 1 + their w).

    Scale 1 needs the class prediction alone. Any other scale needs both, which run as one batch of size 2N. Raises
    ValueError for a scale other than 1 if the network has no classes (null is None).
    """
    if null is None:
        if scale != 1:
            raise ValueError(f"a guidance scale of {scale} for a network without classes; allowed: 1")
        return lambda x, t: network(x, t, None)
    if scale == 1:
        return lambda x, t: network(x, t, labels)
    both = torch.cat([labels, torch.full_like(labels, null)])

    def mixed(x: Tensor, t: Tensor) -> Tensor:
        conditional, unconditional = network(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return unconditional + scale * (conditional - unconditional)

    return mixed
