"""Rectified flow: the path, its target, the loss and the ODE solvers, apart from any network (arXiv 2209.03003).

Time runs from t = 0 (data) to t = 1 (noise): x_t = (1 - t) y + t eps, and the velocity is v = eps - y.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from multiscale.core.streams import Draws
from multiscale.settings import Positive, Section

Velocity = Callable[[Tensor, Tensor], Tensor]  # (x (N,C,h,h), t (N,)) -> v (N,C,h,h)


class Solver(Section):
    """How one flow is sampled."""

    steps: Positive
    method: Literal["euler", "heun"] = "euler"
    cfg: Annotated[float, Field(ge=0)] = 1.0  # guidance weight; 1 is none


def interpolate(data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) y + t eps for t (N,)."""
    t = t.view(-1, *[1] * (data.ndim - 1))
    return (1 - t) * data + t * noise


def draw_times(draws: Draws, density: str) -> Tensor:
    """Training times (N,): 'uniform' on [0, 1], or 'logit-normal', which prefers the middle (arXiv 2403.03206)."""
    if density == "uniform":
        return draws.uniform("time")
    return torch.sigmoid(draws.normal("time"))


def loss(velocity: Velocity, data: Tensor, draws: Draws, density: str) -> Tensor:
    """Flow matching, E || v(x_t, t) - (eps - y) ||^2 (MSF eq. 5)."""
    noise = draws.normal("noise", *data.shape[1:])
    t = draw_times(draws, density)
    predicted = velocity(interpolate(data, noise, t), t)
    return (predicted.float() - (noise - data)).square().mean()


def times(steps: int) -> Tensor:
    """The solver's grid t_0 = 1 > ... > t_steps = 0, evenly spaced."""
    return torch.linspace(1, 0, steps + 1)


def euler(velocity: Velocity, x: Tensor, steps: int, trace: Callable[[Tensor], None] = lambda x: None) -> Tensor:
    """Integrates dx/dt = v from noise to data with one evaluation a step (MSF eq. 6)."""
    grid = times(steps).to(x)
    for now, after in zip(grid[:-1], grid[1:]):
        x = x + (after - now) * velocity(x, now.expand(len(x)))
        trace(x)
    return x


def heun(velocity: Velocity, x: Tensor, steps: int, trace: Callable[[Tensor], None] = lambda x: None) -> Tensor:
    """Integrates dx/dt = v by the trapezoid rule: two evaluations a step, second order."""
    grid = times(steps).to(x)
    for now, after in zip(grid[:-1], grid[1:]):
        slope = velocity(x, now.expand(len(x)))
        ahead = x + (after - now) * slope
        x = x + (after - now) * (slope + velocity(ahead, after.expand(len(x)))) / 2
        trace(x)
    return x


SOLVERS = {"euler": euler, "heun": heun}


def guided(network: Callable[..., Tensor], labels: Tensor, null: int, weight: float) -> Velocity:
    """Classifier-free guidance: v = v_null + w (v_class - v_null) (arXiv 2207.12598).

    network(x, t, labels) gives the velocity. Weight 1 is the class velocity alone, one network call; any other
    weight needs both, which run as one batch of twice the size: two calls.
    """
    if weight == 1:
        return lambda x, t: network(x, t, labels)
    both = torch.cat([labels, torch.full_like(labels, null)])

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        conditional, unconditional = network(torch.cat([x, x]), torch.cat([t, t]), both).chunk(2)
        return unconditional + weight * (conditional - unconditional)

    return velocity
