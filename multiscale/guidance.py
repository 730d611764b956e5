"""Classifier-free guidance (arXiv 2207.12598): mixed predictions of a network that was trained with dropped conditions.

An image that a network is conditioned on is concatenated to its input and never dropped.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from multiscale.condition import Condition

Predict = Callable[[Tensor, Tensor], Tensor]  # (x (N,C,h,h), t (N,)) -> prediction (N,C,h,h)
Conditional = Callable[..., Tensor]  # the same with what a condition gives, (x, t, *given)


def concatenated(network: Conditional, image: Tensor | None) -> Conditional:
    """Concatenates an image (N, C, h, h), if any, to the network's input; repeated for a guided batch of 2N."""
    if image is None:
        return network
    return lambda x, t, *given: network(torch.cat([x, image.repeat(len(x) // len(image), 1, 1, 1)], 1), t, *given)


def guided(network: Conditional, condition: Condition, scale: float) -> Predict:
    """u_null + w (u_condition - u_null) for a guidance scale w (arXiv 2207.12598, eq. 6 with w = 1 + their w).

    Scale 1 needs the conditional prediction alone. Any other scale needs both, which run as one batch of size 2N.
    Raises ValueError for a scale other than 1 if the network knows no null.
    """
    if scale == 1:
        return lambda x, t: network(x, t, *condition.given)
    if condition.null is None:
        raise ValueError(f"a guidance scale of {scale} for a network without classes or an empty prompt; allowed: 1")
    both = condition.with_null().given

    def mixed(x: Tensor, t: Tensor) -> Tensor:
        conditional, unconditional = network(torch.cat([x, x]), torch.cat([t, t]), *both).chunk(2)
        return unconditional + scale * (conditional - unconditional)

    return mixed
