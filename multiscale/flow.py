"""Rectified flow: path, loss and sampling, for any network (arXiv 2209.03003).

Time runs from t = 0 (data) to t = 1 (noise): x_t = (1 - t) y + t eps, and the velocity is v = eps - y.
"""

from __future__ import annotations

from typing import Literal, Self, TypeVar

import torch
from torch import Tensor

from multiscale import solvers
from multiscale.core.settings import Above0, Bad, Sampled, Steps
from multiscale.core.streams import Draws, Held
from multiscale.guidance import Guidance, Predict

Timesteps = Literal["uniform", "logit-normal"]
Level = TypeVar("Level", float, Tensor)


class Solver(Guidance):
    """The ODE solver of a flow."""

    name: Literal["euler", "heun"] = "euler"
    """heun evaluates the network twice a step"""
    steps: Steps = 25
    """evenly spaced in time"""
    shift: Above0 = 1.0
    """of the steps towards noise; 1: none, published for SD3.5: 3"""


class Scaled(Sampled):
    """Fields of every method with a solver for each scale: of a flow of its own (MSF), or of a segment of one flow."""

    scales: list[Solver] = []
    """a solver for each scale, coarsest first; empty: the default one"""

    def at(self, steps: int) -> Self:
        """The same sampler with so many steps at each scale."""
        if not self.scales:
            raise Bad("steps", self.steps, "[], unless `scales` has the solvers whose steps could be others")
        return self._with(scales=[solver.model_dump() | {"steps": steps} for solver in self.scales])


def interpolate(data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x_t = (1 - t) y + t eps for t (N,)."""
    t = t.view(-1, *[1] * (data.ndim - 1))
    return (1 - t) * data + t * noise


def draw_times(draws: Draws, timesteps: Timesteps) -> Tensor:
    """Training times (N,): 'uniform' on [0, 1], or 'logit-normal', denser in the middle (arXiv 2403.03206)."""
    if timesteps == "uniform":
        return draws.uniform("time")
    return torch.sigmoid(draws.normal("time"))


def loss(velocity: Predict, data: Tensor, draws: Draws, timesteps: Timesteps) -> Tensor:
    """The flow-matching loss E || v(x_t, t) - (eps - y) ||^2 (MSF eq. 5)."""
    return _squares(velocity, data, draws.normal("noise", *data.shape[1:]), draw_times(draws, timesteps)).mean()


def errors(velocity: Predict, data: Tensor, held: Held) -> Tensor:
    """The flow-matching loss (N,) of each held-out image at its level, as a time."""
    return _squares(velocity, data, held.normal("noise", *data.shape[1:]), held.levels).flatten(1).mean(1)


def _squares(velocity: Predict, data: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    predicted = velocity(interpolate(data, noise, t), t)
    return (predicted.float() - (noise - data)).square()


def shifted(u: Level, shift: float) -> Level:
    """The time shift s u / (1 + (s - 1) u), which spends more steps on much noise (arXiv 2403.03206)."""
    return shift * u / (1 + (shift - 1) * u)


def solve(velocity: Predict, x: Tensor, solver: Solver, watch: solvers.Watch = solvers.ignore) -> Tensor:
    """Integrates dx/dt = v from noise (t = 1) to data (t = 0) in steps evenly spaced before their shift (MSF eq. 6)."""
    times = shifted(torch.linspace(1, 0, solver.steps + 1), solver.shift).to(x)
    integrate = {"euler": solvers.euler, "heun": solvers.heun}[solver.name]
    return integrate(lambda x, k: velocity(x, times[k].expand(len(x))), x, times.diff(), watch)
