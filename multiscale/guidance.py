"""Classifier-free guidance (arXiv 2207.12598): mixed predictions of a network that was trained with dropped conditions.

An image that a network is conditioned on is concatenated to its input and never dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from pydantic import Field, model_validator
from torch import Tensor

from multiscale.condition import Condition
from multiscale.core.settings import Bad, From0, Section, Share

Predict = Callable[[Tensor, Tensor], Tensor]  # (x (N,C,h,h), t (N,)) -> prediction (N,C,h,h)
Conditional = Callable[..., Tensor]  # the same with what a condition gives, (x, t, *given)
WHOLE = (0.0, 1.0)


class Guidance(Section):
    """The guidance of a solver's steps."""

    guidance_scale: From0 = 1.0
    """of classifier-free guidance; 1: none"""
    guidance_interval: Annotated[list[Share], Field(min_length=2, max_length=2)] = list(WHOLE)
    """times of guided steps, 0: data, 1: noise; the others take half the work"""

    @model_validator(mode="after")
    def _check_interval(self) -> Guidance:
        low, high = self.guidance_interval
        if low >= high:
            raise Bad("guidance_interval", self.guidance_interval, "two times that grow, from 0 to 1")
        return self


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


def guided_by(settings: Guidance, network: Conditional, condition: Condition, noise: float = 1) -> Predict:
    """What a solver integrates: `guided` within the interval of times, plain outside (arXiv 2404.07724), in fp32.

    All images of a batch have one time, from 0 (data) to `noise`.
    """

    def predict(x: Tensor, t: Tensor, *given: Tensor) -> Tensor:
        return network(x, t, *given).float()

    inside, outside = (guided(predict, condition, scale) for scale in (settings.guidance_scale, 1))
    low, high = settings.guidance_interval
    if (low, high) == WHOLE:
        return inside
    return lambda x, t: (inside if low <= float(t[0]) / noise <= high else outside)(x, t)
