"""Diffusion whose states shrink while they get noisier: noise, sides, weights and time steps (SSD, arXiv 2603.08709).

States count from t = 0, the least noisy, to T - 1; the clean image is state -1, with signal 1, sigma 0 and full side.
x_t = a_t R_{0:t} x_0 + sigma_t eps at the side r(t), where R_{0:t} shrinks step by step. One side gives DDPM.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from multiscale.core.streams import Draws
from multiscale.methods.ssd.resizing import OPERATORS, Separable, Transition, identity

CLEAN = -1  # the state of the image itself


def linear_alpha_bar(steps: int) -> list[float]:
    """alpha_bar_t = prod (1 - beta) for beta linear from 1e-4 to 0.02, times 1000 / T to end as noisy for any T."""
    if steps < 20:
        raise ValueError(f"{steps} diffusion steps need a beta above 1; allowed: at least 20")
    beta = torch.linspace(1e-4, 0.02, steps, dtype=torch.float64) * 1000 / steps
    return torch.cumprod(1 - beta, 0).tolist()


def information(snr: float) -> float:
    """The share of pixels in which the signal outweighs the noise, for x_0 uniform on [-1, 1] (section 3).

    1 - 2 int_0^1 Phi(-s x) dx with s = sqrt(snr). An image shrunk to the side r holds a share r^2 of the pixels: once
    that exceeds the information of a state, the smaller image has room for all that the noise left.
    """
    s = math.sqrt(snr)
    return math.erf(s / math.sqrt(2)) + 2 / s * math.expm1(-snr / 2) / math.sqrt(2 * math.pi)


# ---- Which level a state has: level 0 is the full side, n - 1 the smallest. tau runs from 0 at t = 0 to 1 at T - 1.


# Exponents of the two S-shaped schedules. Below 1 |u|^gamma passes 1/2, where p turns back: the sides would grow again,
# and p has no inverse. Far above 1000 the smallest |u|^gamma is no number any more.
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


def halved_sides(side: int, levels: int) -> list[int]:
    """R, R/2, R/4, ... Raises ValueError where a side is odd before it is halved."""
    if side % 2 ** (levels - 1):
        raise ValueError(
            f"a side of {side} cannot be halved {levels - 1} times; allowed: multiples of {2 ** (levels - 1)}"
        )
    return [side >> level for level in range(levels)]


def gradual_sides(side: int, levels: int) -> list[int]:
    """R, R - 1, R - 2, ... Raises ValueError where nothing would be left."""
    if levels > side:
        raise ValueError(f"a side of {side} has no {levels} sides one pixel apart; allowed: at most {side} levels")
    return [side - level for level in range(levels)]


SIDES = {"halved": halved_sides, "gradual": gradual_sides}


class ScaleSpace:
    """The forward process: for every state t its signal a_t, its noise sigma_t and its side r(t), and how to get there.

    sides: of the levels, from the full side down. levels: of the states t = 0 .. T-1, never falling. noise_factor: what
    sigma is multiplied by each level; 1 is the paper's. Averaging 2 x 2 pixels halves their noise, and a step that
    shrinks must add the rest again: near 1/2 it adds next to none, and the state keeps what it knew of the image.
    Raises ValueError for a schedule that grows, or a step that no noise can make white (`Transition`).
    """

    def __init__(
        self, alpha_bar: list[float], sides: list[int], levels: list[int], operator: str, noise_factor: float = 1.0
    ):
        self.steps, self.sides, self.levels, self.noise_factor = len(alpha_bar), sides, levels, noise_factor
        self.alpha_bar = alpha_bar
        for t in range(1, self.steps):
            if levels[t] < levels[t - 1]:
                raise ValueError(
                    f"the schedule of sides grows from {sides[levels[t - 1]]} to {sides[levels[t]]} at t = {t}; "
                    f"allowed: sides that only shrink as t rises"
                )
        self._step_by_step = [OPERATORS[operator](before, after) for before, after in itertools.pairwise(sides)]
        self._from_full = {sides[0]: identity(sides[0])}
        for resize in self._step_by_step:
            self._from_full[resize.after] = resize.following(self._from_full[resize.before])
        self.transitions = [t for t in range(self.steps) if self.side(t) != self.side(t - 1)]
        for t in self.transitions:
            self.transition(t - 1, t)

    def side(self, t: int) -> int:
        """r(t); the clean image has the full side."""
        return self.sides[0 if t == CLEAN else self.levels[t]]

    def signal(self, t: int) -> float:
        """a_t = sqrt(alpha_bar_t)."""
        return 1.0 if t == CLEAN else math.sqrt(self.alpha_bar[t])

    def sigma(self, t: int) -> float:
        """sigma_t = sqrt(1 - alpha_bar_t) times the noise factor of its level."""
        return 0.0 if t == CLEAN else math.sqrt(1 - self.alpha_bar[t]) * self.noise_factor ** self.levels[t]

    def snr(self, t: int) -> float:
        """Signal to noise of a pixel, a_t^2 / sigma_t^2."""
        return self.alpha_bar[t] / ((1 - self.alpha_bar[t]) * self.noise_factor ** (2 * self.levels[t]))

    def shrink(self, clean: Tensor, side: int) -> Tensor:
        """R_{0:t} x_0 for a state of that side: one resize after another, not one from the full side."""
        return self._from_full[side].apply(clean)

    def resize(self, before: int, after: int) -> Separable:
        """The composed operator from one side of the process to a smaller one."""
        first, last = self.sides.index(before), self.sides.index(after)
        operator = identity(before)
        for resize in self._step_by_step[first:last]:
            operator = resize.following(operator)
        return operator

    def transition(self, s: int, t: int, eta: float = 1.0, variance: str = "small") -> Transition:
        """The step between two states s < t, however many lie between them."""
        operator = self.resize(self.side(s), self.side(t))
        return Transition(operator, self.signal(s), self.sigma(s), self.signal(t), self.sigma(t), eta, variance)

    def clean(self, x: Tensor, noise: Tensor, t: int) -> Tensor:
        """The clean image that a prediction of the noise in x_t stands for: (x_t - sigma_t eps) / a_t."""
        return (x - self.sigma(t) * noise) / self.signal(t)


def scale_space(
    side: int,
    steps: int,
    levels: int,
    sizes: str,
    schedule: str,
    gamma: float,
    operator: str,
    noise_factor: float = 1.0,
) -> ScaleSpace:
    """The process of an experiment: T steps over n levels of `sizes`, by a named schedule.

    The operator 'identity' keeps the full side at every level: DDPM. The published processes have halved sides, the
    schedule 'convex-decay' with gamma 0.5 and the operator 'bilinear'. Raises ValueError for an exponent with which a
    schedule does not shrink from one end to the other.
    """
    low, high = S_SHAPED
    if schedule in ("tanh-like", "sigmoid-like") and not low <= gamma <= high:
        raise ValueError(
            f"the schedule {schedule} with an exponent of {gamma} does not shrink all the way; allowed: {low} to {high}"
        )
    if operator == "identity":
        levels, operator = 1, "bilinear"  # with one level nothing is resized
    of_tau = SCHEDULES[schedule]
    of_states = [of_tau(t / (steps - 1), levels, gamma) for t in range(steps)]
    return ScaleSpace(linear_alpha_bar(steps), SIDES[sizes](side, levels), of_states, operator, noise_factor)


def respaced(process: ScaleSpace, steps: int) -> list[int]:
    """About `steps` states of a process, evenly from 0 to T-1, and every one whose step changes the side.

    The network knows a change of side at those states only, so none may be skipped.
    """
    if not 2 <= steps <= process.steps:
        raise ValueError(f"{steps} sampling steps of a process of {process.steps}; allowed: 2 to {process.steps}")
    stride = (process.steps - 1) / (steps - 1)
    return sorted({round(i * stride) for i in range(steps)} | set(process.transitions))


def min_snr_weights(process: ScaleSpace, cap: float | None, predicts: str) -> list[float]:
    """min(SNR(t), cap): the weight of a squared error in x_0 (Min-SNR, arXiv 2303.09556).

    An error in the noise is SNR(t) times as large, squared, and its weight is divided by that: without a cap it is 1,
    the plain loss of DDPM (arXiv 2006.11239, eq. 14).
    """
    ratios = [process.snr(t) for t in range(process.steps)]
    weights = [ratio if cap is None else min(ratio, cap) for ratio in ratios]
    return [weight / ratio for weight, ratio in zip(weights, ratios)] if predicts == "noise" else weights


@dataclass(frozen=True)
class Times:
    """The states of one batch: t (n,), the one side r(t) they have, the side r(t-1) to predict, their weight."""

    t: Tensor
    side: int
    target_side: int
    weight: float


class TimeLaw:
    """Draws the states of a batch: all of one (r(t), r(t-1)), each alone uniform on 0..T-1 (section 4).

    One t* decides for all workers: a step that changes the side has the batch to itself, else every image draws its
    own state among those that share t*'s side. `oversample` makes the n - 1 changes of side so many times likelier;
    with `reweight` the weights keep every expectation as it was, without they count so many times as much.
    """

    def __init__(self, process: ScaleSpace, oversample: int = 1, reweight: bool = True):
        self.steps, self.reweight = process.steps, reweight
        groups: dict[tuple[int, int], list[int]] = {}
        for t in range(process.steps):
            groups.setdefault((process.side(t), process.side(t - 1)), []).append(t)
        self.groups = [(*sides, torch.tensor(members)) for sides, members in groups.items()]
        self.factors = [oversample if side != before else 1 for side, before, _ in self.groups]
        slots = [len(members) * factor for (_, _, members), factor in zip(self.groups, self.factors)]
        self.ends = list(itertools.accumulate(slots))

    def draw(self, draws: Draws) -> Times:
        """The states of a training step."""
        index = bisect.bisect_right(self.ends, draws.choice("time", self.ends[-1]))
        side, target_side, members = self.groups[index]
        place = (draws.uniform("times") * len(members)).long()
        t = members.to(place.device)[place.clamp(max=len(members) - 1)]  # u < 1, but not once it is rounded
        weight = self.ends[-1] / (self.steps * self.factors[index]) if self.reweight else 1.0
        return Times(t, side, target_side, weight)
