"""ODE solvers on a grid of times, for flows and score models: Euler's and Heun's method."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

Slope = Callable[[Tensor, int], Tensor]  # (x (N,C,h,h), k) -> dx/dt at the k-th time of the grid
Watch = Callable[[Tensor], None]  # called with the state after each step


def ignore(x: Tensor) -> None:
    """A `Watch` that does nothing."""


def euler(
    slope: Slope, x: Tensor, gaps: Sequence[float] | Tensor, watch: Watch = ignore, last: Slope | None = None
) -> Tensor:
    """Integrates dx/dt = slope by Euler's method: first order, one evaluation a step.

    gaps (steps,): signed distances between the times. last(x, k), if given, replaces the last step.
    """
    for k, gap in enumerate(gaps):
        x = last(x, k) if last and k == len(gaps) - 1 else x + gap * slope(x, k)
        watch(x)
    return x


def heun(
    slope: Slope, x: Tensor, gaps: Sequence[float] | Tensor, watch: Watch = ignore, last: Slope | None = None
) -> Tensor:
    """Integrates dx/dt = slope by Heun's method (the trapezoidal rule): second order, two evaluations a step.

    Takes the arguments of `euler`.
    """
    for k, gap in enumerate(gaps):
        if last and k == len(gaps) - 1:
            x = last(x, k)
        else:
            here = slope(x, k)
            x = x + gap * (here + slope(x + gap * here, k + 1)) / 2
        watch(x)
    return x
