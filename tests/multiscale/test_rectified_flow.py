"""Rectified flow: path and target, loss, training times, and the order of the solvers."""

from __future__ import annotations

import math

import pytest
import torch

from multiscale import flow
from multiscale.condition import Classes
from multiscale.core.streams import Draws
from multiscale.guidance import guided


def solve(name: str, velocity, x: torch.Tensor, steps: int, *watch):
    return flow.solve(velocity, x, flow.Solver(name=name, steps=steps), *watch)


def draws(batch: int = 8) -> Draws:
    return Draws(0, "part", 0, batch, slice(0, batch), torch.device("cpu"))


def test_the_path_runs_straight_from_data_to_noise():
    data, noise = torch.randn(5, 2, 3, 3), torch.randn(5, 2, 3, 3)
    assert torch.equal(flow.interpolate(data, noise, torch.zeros(5)), data)
    assert torch.equal(flow.interpolate(data, noise, torch.ones(5)), noise)
    t = torch.linspace(0.1, 0.9, 5)
    for k in range(5):  # every row has its own time
        torch.testing.assert_close(flow.interpolate(data, noise, t)[k], data[k] + t[k] * (noise[k] - data[k]))


def test_the_target_is_the_slope_of_the_path():
    data, noise = torch.randn(4, 1, 2, 2), torch.randn(4, 1, 2, 2)
    before, after = (flow.interpolate(data, noise, torch.full((4,), t)) for t in (0.25, 0.75))
    torch.testing.assert_close((after - before) / 0.5, noise - data)


@pytest.mark.parametrize("timesteps", ["uniform", "logit-normal"])
def test_the_loss_is_zero_for_the_perfect_velocity_and_the_mean_square_for_any_other(timesteps):
    data = torch.randn(8, 2, 4, 4)
    noise, t = draws().normal("noise", 2, 4, 4), flow.draw_times(draws(), timesteps)
    seen = {}

    def perfect(x, at):
        seen.update(x=x, t=at)
        return noise - data

    assert flow.loss(perfect, data, draws(), timesteps) == 0
    assert torch.equal(seen["t"], t)
    assert torch.equal(seen["x"], flow.interpolate(data, noise, t))
    off = flow.loss(lambda x, t: noise - data + 0.5, data, draws(), timesteps)
    assert off.item() == pytest.approx(0.25, rel=1e-5)
    mean = flow.loss(lambda x, t: torch.zeros_like(x), data, draws(), timesteps)
    torch.testing.assert_close(mean, (noise - data).square().mean())


def test_the_times_have_the_density_they_are_named_after():
    def below(t: torch.Tensor, bound: float) -> float:
        return (t < bound).float().mean().item()

    uniform, normal = (flow.draw_times(draws(100_000), timesteps) for timesteps in ("uniform", "logit-normal"))
    for t in (uniform, normal):
        assert t.shape == (100_000,) and t.min() >= 0 and t.max() <= 1
    for bound in (0.1, 0.25, 0.5, 0.75, 0.9):
        logit = math.log(bound / (1 - bound))
        assert below(uniform, bound) == pytest.approx(bound, abs=0.006)
        assert below(normal, bound) == pytest.approx(0.5 * (1 + math.erf(logit / math.sqrt(2))), abs=0.006)


@pytest.mark.parametrize(
    "slope, start_over_end",
    [(lambda x, t: x, math.e), (lambda x, t: 2 * t.view(-1, 1, 1, 1) * x, math.e)],
    ids=["dx/dt = x", "dx/dt = 2 t x"],
)
@pytest.mark.parametrize("name, order", [("euler", 1), ("heun", 2)])
def test_a_solver_converges_with_its_order(name, order, slope, start_over_end):
    x = torch.ones(2, 1, 1, 1, dtype=torch.float64)
    errors = [(solve(name, slope, x, n)[0] - 1 / start_over_end).abs().item() for n in (16, 32, 64)]
    for coarse, fine in zip(errors[:-1], errors[1:]):
        assert coarse / fine == pytest.approx(2**order, rel=0.12)


@pytest.mark.parametrize("name, evaluations", [("euler", 1), ("heun", 2)])
def test_a_solver_walks_an_even_grid_and_reports_each_step(name, evaluations):
    times, frames = [], []

    def velocity(x, t):
        assert t.shape == (3,) and len(t.unique()) == 1
        times.append(t[0].item())
        return torch.ones_like(x)

    end = solve(name, velocity, torch.zeros(3, 1, 2, 2), 4, frames.append)
    euler, heun = [1, 0.75, 0.5, 0.25], [1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25, 0]
    assert times == (euler if evaluations == 1 else heun)
    assert torch.equal(end, torch.full((3, 1, 2, 2), -1.0))  # from t = 1 down to 0 along a slope of 1
    assert len(frames) == 4 and torch.equal(frames[-1], end) and frames[0].mean() == -0.25


def test_shifted_steps_are_denser_at_much_noise():
    """By hand: 3 u / (1 + 2 u) at u = 1, 3/4, 1/2 and 1/4."""
    times = []

    def velocity(x, t):
        times.append(t[0].item())
        return torch.ones_like(x)

    flow.solve(velocity, torch.zeros(1, 1, 1, 1), flow.Solver(steps=4, shift=3.0))
    assert times == pytest.approx([1, 0.9, 0.75, 0.5])


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_a_straight_path_is_solved_in_one_step(name):
    data, noise = torch.randn(3, 2, 4, 4).double(), torch.randn(3, 2, 4, 4).double()
    torch.testing.assert_close(solve(name, lambda x, t: noise - data, noise, 1), data)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0, 1.4, 4.0])
def test_guidance_moves_from_the_unconditional_velocity_through_the_conditional_one(weight):
    calls = []

    def network(x, t, labels):
        calls.append(len(x))
        return x * t.view(-1, 1, 1, 1) + labels.view(-1, 1, 1, 1)  # tells inputs, times and labels apart

    x, t, labels = torch.randn(3, 1, 2, 2), torch.tensor([0.2, 0.5, 0.7]), torch.tensor([0, 2, 4])
    conditional, unconditional = network(x, t, labels), network(x, t, torch.full((3,), 10))
    calls.clear()
    torch.testing.assert_close(
        guided(network, Classes(10)(labels), weight)(x, t), unconditional + weight * (conditional - unconditional)
    )
    assert sum(calls) == (3 if weight == 1 else 6)
