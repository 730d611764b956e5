"""Score-based models in continuous time: the variance-preserving SDE, its loss and its solvers, apart from any network.

    dx = -1/2 beta(t) x dt + sqrt(beta(t)) dW,    x_t = alpha(t) y + sigma(t) eps,    alpha^2 + sigma^2 = 1

The SDE is eq. 11 of arXiv 2011.13456. Time runs from t = 0 (data) to t = 1 (noise); the network predicts eps; the score
is -eps / sigma. Euler's and Heun's method of N steps evaluate the network at t = 1, 1 - 1/N, ..., 1/N, DPM-Solver++ at
times evenly spaced in log(alpha / sigma). All end with the posterior mean: the last step removes noise and adds none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from multiscale import solvers
from multiscale.condition import Condition
from multiscale.core.compat import without_pipelines
from multiscale.core.settings import Steps
from multiscale.core.streams import Draws, Held, noise_of_seeds
from multiscale.guidance import Conditional, Guidance, Predict, guided_by

Predicts = Literal["noise", "velocity", "x0"]
Noise = Callable[[int], Tensor]  # step k -> unit Gaussian noise shaped like the state
Weight = Callable[[Tensor, Tensor], Tensor]  # (alpha, sigma) -> the weight of the noise's squared error
EARLIEST = 1e-3  # the least training time: the score grows like 1 / sigma below


class ScoreSolver(Guidance):
    """How a score model is sampled."""

    name: Literal["euler-maruyama", "ode-euler", "ode-heun", "dpm-solver++"] = "dpm-solver++"
    """euler-maruyama: of the reverse SDE; the others: of its ODE"""
    steps: Steps = 50
    """ode-heun evaluates the network twice a step, the others once"""


@dataclass(frozen=True)
class VPSchedule:
    """beta(t) rises linearly; sigma(1) > 0.9999 with the published end points."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def beta(self, t: Tensor) -> Tensor:
        """The rate of the noise."""
        return self.beta_min + (self.beta_max - self.beta_min) * t

    def log_alpha(self, t: Tensor) -> Tensor:
        """-1/2 int_0^t beta."""
        return -0.5 * (self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t**2)

    def alpha(self, t: Tensor) -> Tensor:
        """The signal's factor."""
        return self.log_alpha(t).exp()

    def sigma(self, t: Tensor) -> Tensor:
        """The noise's standard deviation."""
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def log_ratio(self, t: Tensor) -> Tensor:
        """log(alpha / sigma), half the logarithm of the signal-to-noise ratio."""
        return self.log_alpha(t) - self.sigma(t).log()

    def time(self, log_ratio: Tensor) -> Tensor:
        """Undoes `log_ratio`: a quadratic in t."""
        slope = self.beta_max - self.beta_min
        root = (self.beta_min**2 + 2 * slope * torch.nn.functional.softplus(-2 * log_ratio)).sqrt()
        return (root - self.beta_min) / slope


VP = VPSchedule()
PLAIN: dict[Predicts, Weight] = {  # of the noise's error, so that the prediction's own has weight 1 at every t
    "noise": lambda alpha, sigma: torch.ones_like(alpha),
    "velocity": lambda alpha, sigma: alpha**-2,
    "x0": lambda alpha, sigma: (sigma / alpha) ** 2,
}


def weight_of(predicts: Predicts, snr_cap: float | None) -> Weight:
    """The loss's weight: the prediction's own plain error, or Min-SNR where there is a cap (arXiv 2303.09556).

    With a cap the clean data's squared error has the weight min(SNR, cap), whatever is predicted; the noise's then has
    min(1, cap / SNR). Plain, 'velocity' is EDM's weight with its preconditioning (arXiv 2206.00364, section 5).
    """
    if snr_cap is None:
        return PLAIN[predicts]
    return lambda alpha, sigma: (snr_cap * (sigma / alpha) ** 2).clamp_max(1)


def loss(predict: Predict, data: Tensor, draws: Draws, weight: Weight) -> Tensor:
    """Denoising score matching, E weight(t) || eps(x_t, t) - eps ||^2 with t uniform on [0.001, 1].

    Eq. 7 of arXiv 2011.13456 for the score -eps / sigma, its lambda(t) being weight(t) sigma(t)^2.
    """
    return _squares(predict, data, draws.normal("noise", *data.shape[1:]), draws.uniform("time"), weight).mean()


def errors(predict: Predict, data: Tensor, held: Held) -> Tensor:
    """The squared error (N,) of each held-out image's x_0 times min(SNR, 1), whatever the weight in training."""
    noise = held.normal("noise", *data.shape[1:])
    return _squares(predict, data, noise, held.levels, weight_of("noise", 1.0)).flatten(1).mean(1)


def _squares(predict: Predict, data: Tensor, noise: Tensor, place: Tensor, weight: Weight) -> Tensor:
    """The weighted squares at the times that `place` (N,) in 0..1 stands for."""
    t = EARLIEST + (1 - EARLIEST) * place
    alpha, sigma = (factor(t.double()).to(data).view(-1, 1, 1, 1) for factor in (VP.alpha, VP.sigma))
    predicted = predict(alpha * data + sigma * noise, t)
    return weight(alpha, sigma) * (predicted.float() - noise).square()


def times(steps: int) -> list[float]:
    """The grid t_0 = 1 > ... > t_steps = 0, evenly spaced. Raises ValueError for zero steps."""
    if steps < 1:
        raise ValueError(f"{steps} sampling steps; allowed: at least 1")
    return [1 - k / steps for k in range(steps)] + [0.0]


def ratio_times(steps: int) -> list[float]:
    """As `times`, but from 1 to 0.001 evenly spaced in log(alpha / sigma), then 0 (DPM-Solver, arXiv 2206.00927)."""
    times(steps)  # refuses zero steps
    first, last = VP.log_ratio(torch.tensor([1.0, EARLIEST], dtype=torch.float64)).tolist()
    return [1.0, *VP.time(torch.linspace(first, last, steps, dtype=torch.float64))[1:].tolist(), 0.0]


class Grid:
    """The coefficients of a solver's steps, in float64: t, alpha, sigma and beta at each time of the grid.

    `h` is the step of the evenly spaced grid.
    """

    def __init__(self, steps: int, spaced: Callable[[int], list[float]] = times):
        self.t = spaced(steps)
        t = torch.tensor(self.t, dtype=torch.float64)
        factors: list[list[float]] = [f(t).tolist() for f in (VP.alpha, VP.sigma, VP.beta)]
        self.alpha, self.sigma, self.beta = factors
        self.h = 1 / steps

    def predict(self, eps: Predict, x: Tensor, k: int) -> Tensor:
        """The network at time t_k."""
        return eps(x, torch.full((len(x),), self.t[k], device=x.device, dtype=x.dtype))

    def clean(self, x: Tensor, e: Tensor, k: int) -> Tensor:
        """The posterior mean of the data at time t_k (Tweedie's formula)."""
        return (x - self.sigma[k] * e) / self.alpha[k]

    def velocity(self, x: Tensor, e: Tensor, k: int) -> Tensor:
        """dx/dt of the probability-flow ODE, -1/2 beta (x - eps / sigma) (arXiv 2011.13456, eq. 13)."""
        return -0.5 * self.beta[k] * (x - e / self.sigma[k])


def euler_maruyama(eps: Predict, x: Tensor, steps: int, noise: Noise, watch: solvers.Watch = solvers.ignore) -> Tensor:
    """The reverse SDE (arXiv 2011.13456, eq. 6) by Euler's method: x + h beta (x / 2 - eps / sigma) + sqrt(h beta) z.

    The last step takes the posterior mean of the data in its place.
    """
    grid = Grid(steps)
    for k in range(steps):
        e = grid.predict(eps, x, k)
        if k == steps - 1:
            x = grid.clean(x, e, k)
        else:
            rate = grid.h * grid.beta[k]
            x = x + rate * (x / 2 - e / grid.sigma[k]) + rate**0.5 * noise(k)
        watch(x)
    return x


def probability_flow(
    solver: Callable[..., Tensor],
    eps: Predict,
    x: Tensor,
    steps: int,
    noise: Noise | None = None,
    watch: solvers.Watch = solvers.ignore,
) -> Tensor:
    """The probability-flow ODE (arXiv 2011.13456, eq. 13) by a solver of `multiscale.solvers`; `noise` is not used."""
    grid = Grid(steps)
    slope = lambda x, k: grid.velocity(x, grid.predict(eps, x, k), k)  # noqa: E731
    last = lambda x, k: grid.clean(x, grid.predict(eps, x, k), k)  # noqa: E731
    return solver(slope, x, [-grid.h] * steps, watch, last)


def dpm_solver(
    eps: Predict, x: Tensor, steps: int, noise: Noise | None = None, watch: solvers.Watch = solvers.ignore
) -> Tensor:
    """DPM-Solver++(2M) of diffusers (arXiv 2211.01095, algorithm 2); `noise` is not used.

    Second order in log(alpha / sigma), one evaluation a step. The scheduler counts training steps; its table of
    sigma / alpha, the only thing that its coefficients depend on, is replaced by that of our grid.
    """
    with without_pipelines():
        from diffusers.schedulers import DPMSolverMultistepScheduler  # takes seconds to import

    grid = Grid(steps, ratio_times)
    scheduler = DPMSolverMultistepScheduler(solver_order=2, algorithm_type="dpmsolver++")
    scheduler.set_timesteps(timesteps=list(range(steps, 0, -1)))
    scheduler.set_begin_index(0)
    ratios = [sigma / alpha for alpha, sigma in zip(grid.alpha, grid.sigma)]
    scheduler.sigmas = torch.tensor(ratios, dtype=torch.float64)
    for k in range(steps):
        e = grid.predict(eps, x, k)
        x = scheduler.step(e, scheduler.timesteps[k], x, return_dict=False)[0].to(x)
        watch(x)
    return x


SOLVERS: dict[str, Callable[..., Tensor]] = {
    "euler-maruyama": euler_maruyama,
    "ode-euler": partial(probability_flow, solvers.euler),
    "ode-heun": partial(probability_flow, solvers.heun),
    "dpm-solver++": dpm_solver,
}


def solve(
    network: Conditional,
    condition: Condition,
    seeds: list[int],
    stream: str,
    shape: tuple[int, ...],
    solver: ScoreSolver,
    device: torch.device,
    watch: solvers.Watch = solvers.ignore,
) -> Tensor:
    """Samples (N, *shape) of a score model under guidance.

    Image k depends on its condition, seeds[k] and the stream alone. Raises ValueError for guidance of a network without
    a null.
    """

    def noise(step: int) -> Tensor:
        return noise_of_seeds(seeds, f"{stream}/{step}", shape, device)

    predict = guided_by(solver, network, condition)
    start = noise_of_seeds(seeds, stream, shape, device)
    return SOLVERS[solver.name](predict, start, solver.steps, noise, watch)
