"""SSD's forward process (arXiv 2603.08709): noise and resolution of each state, loss weights and timestep sampling.

x_t = a_t R_{0:t} x_0 + sigma_t eps at the resolution r(t), where R_{0:t} shrinks step by step. One resolution is DDPM.
States count from t = 0, the least noisy, to T - 1. The clean image is state -1: signal 1, sigma 0, full resolution.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from multiscale.core.settings import Above0, Bad, Edge, Section, Steps
from multiscale.core.streams import Draws
from multiscale.methods.ssd.resizing import OPERATORS, Separable, Transition, Variance, identity

CLEAN = -1  # the state of the image itself
Target = Literal["x0", "noise"]  # what a network predicts


def linear_alpha_bar(steps: int) -> list[float]:
    """alpha_bar_t = prod (1 - beta), beta linear from 1e-4 to 0.02, times 1000 / T to end as noisy for any T >= 20."""
    beta = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64) * 1000 / steps
    alpha_bar: list[float] = torch.cumprod(1 - beta, 0).tolist()
    return alpha_bar


# ---- The level of a state: 0 is the full resolution, n - 1 the smallest. tau runs from 0 at t = 0 to 1 at t = T - 1.


# Exponents of the two S-shaped schedules. Below 1 |u|^gamma passes 1/2, where p turns back: resolutions would grow
# again, and p has no inverse. Far above 1000 the smallest |u|^gamma underflows.
S_SHAPED = (1, 1000)


def _smooth(u: float, gamma: float) -> float:
    """p(u) = 3 q^2 - 2 q^3 - 1/2 with q = 1/2 + v, v = sign(u) |u|^gamma: odd, and flat in the middle for gamma > 1.

    Multiplied out, so that a small v is not lost beside 1/2.
    """
    v = math.copysign(abs(u) ** gamma, u)
    return 1.5 * v - 2 * v**3


def _tanh_like(w: float, gamma: float) -> float:
    """Rises from 0 to 1, steep at the ends."""
    return 0.5 + 0.5 * _smooth(w - 0.5, gamma) / _smooth(0.5, gamma)


def _sigmoid_like(w: float, gamma: float) -> float:
    """Rises from 0 to 1, steep in the middle: the inverse of `_tanh_like`, whose cubic has a closed-form root."""

    def inverse(y: float) -> float:
        root = math.sin(math.asin(max(-1.0, min(1.0, 4 * y * _smooth(0.5, gamma)))) / 3)
        return math.copysign(abs(root) ** (1 / gamma), root)

    return 0.5 + 0.5 * inverse(w - 0.5) / inverse(0.5)


def _floor(x: float, levels: int) -> int:
    return min(int(x * levels), levels - 1)


SCHEDULES: dict[str, Callable[[float, int, float], int]] = {
    "equal": lambda tau, n, gamma: _floor(tau, n),
    "convex-decay": lambda tau, n, gamma: _floor(1 - (1 - tau) ** gamma, n),
    "tanh-like": lambda tau, n, gamma: n - 1 - _floor(_tanh_like(1 - tau, gamma), n),
    "sigmoid-like": lambda tau, n, gamma: n - 1 - _floor(_sigmoid_like(1 - tau, gamma), n),
}


def halved(resolution: int, levels: int) -> list[int]:
    """R, R/2, R/4, ... Raises ValueError where a resolution is odd before it is halved."""
    factor = 2 ** (levels - 1)
    if resolution % factor:
        raise ValueError(
            f"a resolution of {resolution} cannot be halved {levels - 1} times; allowed: multiples of {factor}"
        )
    return [resolution >> level for level in range(levels)]


def gradual(resolution: int, levels: int) -> list[int]:
    """R, R - 1, R - 2, ... Raises ValueError where nothing would be left."""
    if levels > resolution:
        raise ValueError(
            f"a resolution of {resolution} has no {levels} resolutions one pixel apart; "
            f"allowed: at most {resolution} levels"
        )
    return [resolution - level for level in range(levels)]


RESOLUTIONS = {"halved": halved, "gradual": gradual}


class ScaleSpaceProcess(Section):
    """SSD's forward process; the defaults are published. One level is DDPM."""

    steps: Annotated[Steps, Field(ge=20)] = 1000
    """T; beta is scaled by 1000 / T, which allows no fewer than 20"""
    levels: Edge
    """resolutions that its states have; 1: DDPM"""
    resolutions: Literal["halved", "gradual"] = "halved"
    """from level to level; gradual: one pixel less"""
    schedule: Literal["equal", "convex-decay", "tanh-like", "sigmoid-like"] = "convex-decay"
    """of the levels over the steps"""
    gamma: Above0 = 0.5
    """exponent of the schedule; at least 1 for tanh- and sigmoid-like"""
    operator: Literal["bilinear", "box", "identity"] = "bilinear"
    """resize between levels; identity: none, DDPM"""
    noise_factor: Annotated[float, Field(gt=0, le=1)] = 1.0
    """of sigma from level to level; 0.505 keeps the low band's SNR"""

    @model_validator(mode="after")
    def _check(self) -> ScaleSpaceProcess:
        low, high = S_SHAPED
        if self.schedule in ("tanh-like", "sigmoid-like") and not low <= self.gamma <= high:
            problem = f"the schedule {self.schedule} with an exponent of {self.gamma} does not shrink all the way"
            raise Bad("gamma", self.gamma, f"{low} to {high} ({problem})")
        return self

    @property
    def shrinks(self) -> bool:
        """Whether its states have more than one resolution."""
        return self.levels > 1 and self.operator != "identity"

    def levels_of(self, resolution: int) -> list[int]:
        """The resolutions of the levels, from the full one down. Raises ValueError where there are not so many."""
        return RESOLUTIONS[self.resolutions](resolution, self.levels if self.shrinks else 1)

    def build(self, resolution: int) -> ScaleSpace:
        """The process of images of a resolution. Raises ValueError as `levels_of` and ScaleSpace do."""
        resolutions, of_tau = self.levels_of(resolution), SCHEDULES[self.schedule]
        levels = [of_tau(t / (self.steps - 1), len(resolutions), self.gamma) for t in range(self.steps)]
        return ScaleSpace(linear_alpha_bar(self.steps), resolutions, levels, self.operator, self.noise_factor)


class ScaleSpace:
    """The forward process: signal a_t, noise sigma_t and resolution r(t) of each state t, and the steps between states.

    resolutions: of the levels, from the full one down. levels: of the states t = 0 .. T-1, never falling.
    noise_factor: sigma is multiplied by it at each level; 1 is the paper's. Averaging 2 x 2 pixels halves their noise,
    and a step that shrinks must add the rest again. A factor near 1/2 adds next to none: the state keeps what it knew
    of the image. Raises ValueError for a step that no noise can make white (`Transition`).
    """

    def __init__(
        self, alpha_bar: list[float], resolutions: list[int], levels: list[int], operator: str, noise_factor: float
    ):
        self.steps, self.resolutions, self.levels, self.noise_factor = len(alpha_bar), resolutions, levels, noise_factor
        self.alpha_bar = alpha_bar
        self._step_by_step = [OPERATORS[operator](before, after) for before, after in itertools.pairwise(resolutions)]
        self._from_full = {resolutions[0]: identity(resolutions[0])}
        for resize in self._step_by_step:
            self._from_full[resize.after] = resize.following(self._from_full[resize.before])
        self.transitions = [t for t in range(self.steps) if self.resolution(t) != self.resolution(t - 1)]
        for t in self.transitions:
            self.transition(t - 1, t)

    def resolution(self, t: int) -> int:
        """r(t); the clean image has the full resolution."""
        return self.resolutions[0 if t == CLEAN else self.levels[t]]

    def signal(self, t: int) -> float:
        """a_t = sqrt(alpha_bar_t)."""
        return 1.0 if t == CLEAN else math.sqrt(self.alpha_bar[t])

    def sigma(self, t: int) -> float:
        """sigma_t = sqrt(1 - alpha_bar_t) times the noise factor of its level."""
        return 0.0 if t == CLEAN else math.sqrt(1 - self.alpha_bar[t]) * self.noise_factor ** self.levels[t]

    def snr(self, t: int) -> float:
        """Signal-to-noise ratio of a pixel, a_t^2 / sigma_t^2."""
        return self.alpha_bar[t] / ((1 - self.alpha_bar[t]) * self.noise_factor ** (2 * self.levels[t]))

    def shrink(self, clean: Tensor, resolution: int) -> Tensor:
        """R_{0:t} x_0 for a state of that resolution: composed of one resize a level, not resized at once."""
        return self._from_full[resolution].apply(clean)

    def resize(self, before: int, after: int) -> Separable:
        """The composed operator from one resolution of the process to a smaller one."""
        first, last = self.resolutions.index(before), self.resolutions.index(after)
        operator = identity(before)
        for resize in self._step_by_step[first:last]:
            operator = resize.following(operator)
        return operator

    def transition(self, s: int, t: int, eta: float = 1.0, variance: Variance = "small") -> Transition:
        """The step between two states s < t, however many lie between them."""
        operator = self.resize(self.resolution(s), self.resolution(t))
        return Transition(operator, self.signal(s), self.sigma(s), self.signal(t), self.sigma(t), eta, variance)

    def clean(self, x: Tensor, noise: Tensor, t: int) -> Tensor:
        """The clean image by the noise predicted in x_t: (x_t - sigma_t eps) / a_t."""
        return (x - self.sigma(t) * noise) / self.signal(t)


def respaced(process: ScaleSpace, steps: int) -> list[int]:
    """About `steps` states of a process, evenly spaced from 0 to T-1, and every transition (as the released code does).

    The network has learnt changes of resolution at the transitions alone, so none may be skipped. Raises ValueError
    for more steps than the process has.
    """
    if not 2 <= steps <= process.steps:
        raise ValueError(f"{steps} sampling steps of a process of {process.steps}; allowed: 2 to {process.steps}")
    stride = (process.steps - 1) / (steps - 1)
    return sorted({round(i * stride) for i in range(steps)} | set(process.transitions))


def min_snr_weights(process: ScaleSpace, cap: float | None, predicts: Target) -> list[float]:
    """min(SNR(t), cap): the weight of a squared error in x_0 (Min-SNR, arXiv 2303.09556).

    An error in the noise is SNR(t) times as large, squared, and its weight is divided by that: without a cap it is 1,
    the plain loss of DDPM (arXiv 2006.11239, eq. 14).
    """
    ratios = [process.snr(t) for t in range(process.steps)]
    weights = [ratio if cap is None else min(ratio, cap) for ratio in ratios]
    return [weight / ratio for weight, ratio in zip(weights, ratios)] if predicts == "noise" else weights


@dataclass(frozen=True)
class Timesteps:
    """The states of a batch: t (n,), their resolution r(t), the resolution r(t-1) of the prediction, their weight."""

    t: Tensor
    resolution: int
    target_resolution: int
    weight: float


class TimestepSampler:
    """Draws the states of a batch, all of one pair (r(t), r(t-1)); each is uniform on 0..T-1 by itself (section 4).

    One t* decides for all workers. If its step changes the resolution, the whole batch has t*. Otherwise each image
    draws its own state among those with the resolutions of t*. `oversample` makes the n - 1 transitions so many times
    likelier. `reweight` divides their loss by as much, which keeps every expectation; without it they count for more.
    """

    def __init__(self, process: ScaleSpace, oversample: int = 1, reweight: bool = True):
        self.steps, self.reweight = process.steps, reweight
        groups: dict[tuple[int, int], list[int]] = {}
        for t in range(process.steps):
            groups.setdefault((process.resolution(t), process.resolution(t - 1)), []).append(t)
        self.groups = [(*resolutions, torch.tensor(members)) for resolutions, members in groups.items()]
        self.factors = [oversample if resolution != before else 1 for resolution, before, _ in self.groups]
        slots = [len(members) * factor for (_, _, members), factor in zip(self.groups, self.factors)]
        self.ends = list(itertools.accumulate(slots))

    def odds(self) -> dict[int, int]:
        """The first integer of each pair of resolutions, and how many are the pair's."""
        starts = [0, *self.ends[:-1]]
        return {start: end - start for start, end in zip(starts, self.ends)}

    def draw(self, draws: Draws) -> Timesteps:
        """The states of a training step."""
        index = bisect.bisect_right(self.ends, draws.choice("time", self.ends[-1]))
        resolution, target_resolution, members = self.groups[index]
        place = (draws.uniform("times") * len(members)).long()
        t = members.to(place.device)[place.clamp(max=len(members) - 1)]  # u < 1, but not once it is rounded
        weight = self.ends[-1] / (self.steps * self.factors[index]) if self.reweight else 1.0
        return Timesteps(t, resolution, target_resolution, weight)
