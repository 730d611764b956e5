"""The score model's SDE, loss and solvers: exact distributions for Gaussians, and orders of convergence."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from multiscale.core.streams import Draws, generator
from multiscale.methods.wmgm import score
from multiscale.methods.wmgm.score import VP, Grid
from multiscale.methods.wmgm.score_net import ScoreNet
from multiscale.methods.wmgm.theory import Modes, euler_output
from multiscale.networks.unet import UNetNetwork

VARIANCES = torch.tensor([4.0, 1.0, 0.25, 0.05], dtype=torch.float64)
MEAN = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)


def exact(x: Tensor, t: Tensor) -> Tensor:
    """The noise prediction of Gaussian data N(MEAN, VARIANCES), one number a channel: sigma (x - alpha m) / s."""
    alpha, sigma = VP.alpha(t.double()).view(-1, 1, 1, 1), VP.sigma(t.double()).view(-1, 1, 1, 1)
    mean, variances = MEAN.view(1, -1, 1, 1), VARIANCES.view(1, -1, 1, 1)
    return sigma * (x - alpha * mean) / (alpha**2 * variances + sigma**2)


def start(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 4, 1, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def noises(count: int):
    def noise(k: int) -> Tensor:
        return torch.randn(count, 4, 1, 1, generator=generator(1, "noise", k), dtype=torch.float64)

    return noise


def linear(solver, steps: int) -> tuple[Tensor, Tensor]:
    """The mean and standard deviation of a deterministic solver's output, which is affine in its initial noise."""
    ends = [solver(exact, value * torch.ones(1, 4, 1, 1, dtype=torch.float64), steps).flatten() for value in (0.0, 1.0)]
    return ends[0], (ends[1] - ends[0]).abs()


def test_signal_and_noise_share_the_variance_and_noise_is_all_there_is_in_the_end():
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    assert (VP.alpha(t) ** 2 + VP.sigma(t) ** 2 - 1).abs().max() < 1e-12
    assert VP.sigma(t)[-1] > 0.9999 and VP.sigma(t)[0] == 0
    assert VP.alpha(t)[-1].item() == pytest.approx(math.exp(-0.5 * (0.1 + 19.9 / 2)))
    slope = torch.gradient(VP.log_alpha(t), spacing=1e-3)[0][1:-1]
    assert torch.allclose(slope, -0.5 * VP.beta(t)[1:-1], atol=1e-9)
    assert VP.sigma(torch.tensor(1e-6, dtype=torch.float64)).item() == pytest.approx(math.sqrt(1e-7), rel=1e-4)


def draws(step: int = 0, batch: int = 6, rows: slice = slice(None)) -> Draws:
    return Draws(0, "part", step, batch, rows, torch.device("cpu"))


def test_the_loss_is_the_error_of_the_noise_at_times_from_a_thousandth_to_one():
    data, seen = torch.randn(4000, 1, 2, 2, generator=torch.Generator().manual_seed(0)), []

    def predict(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x, t))
        return torch.zeros_like(x)

    found = score.loss(predict, data, draws(batch=4000), score.weight_of("velocity", None))
    (x, t), noise = seen[0], draws(batch=4000).normal("noise", 1, 2, 2)
    alpha, sigma = VP.alpha(t.double()).view(-1, 1, 1, 1), VP.sigma(t.double()).view(-1, 1, 1, 1)
    assert found.item() == pytest.approx((noise / alpha).square().mean().item(), rel=1e-5)
    assert (x - alpha * data - sigma * noise).abs().max() < 1e-5
    assert 1e-3 <= t.min() < 0.002 and 0.998 < t.max() <= 1
    assert t.mean().item() == pytest.approx(0.5, abs=0.02)


def test_the_loss_is_least_for_the_exact_noise_prediction():
    data = (MEAN + VARIANCES.sqrt() * start(4000, 3).flatten(1)).view(-1, 4, 1, 1).float()
    weight = score.weight_of("noise", None)
    best = score.loss(lambda x, t: exact(x, t).float(), data, draws(batch=4000), weight)
    for factor in (0.9, 1.1):
        assert score.loss(lambda x, t, f=factor: f * exact(x, t).float(), data, draws(batch=4000), weight) > best


@pytest.mark.parametrize(
    ("predicts", "cap", "expected"),
    [
        ("noise", None, (0.1, 0.1, 0.1)),  # |eps - e|^2 = (0.1 sqrt 10)^2 / 10
        ("velocity", None, (0.1 / 0.64, 0.1 / 0.36, 0.1 / 0.9999)),  # the error of v is that of eps over alpha
        ("x0", None, (0.1 * 0.36 / 0.64, 0.1 * 0.64 / 0.36, 0.1 * 0.0001 / 0.9999)),  # that of x_0: sigma / alpha
        ("noise", 1.0, (0.1 * 0.36 / 0.64, 0.1, 0.1 * 0.0001 / 0.9999)),  # min(SNR, 1) |x_0 error|^2
        ("x0", 0.5, (0.1 * 0.5 * 0.36 / 0.64, 0.1 * 0.5 * 0.64 / 0.36, 0.1 * 0.5 * 0.0001 / 0.9999)),
    ],
)
def test_the_weights_of_the_predictions_by_hand(predicts, cap, expected):
    alpha = torch.tensor([0.64, 0.36, 0.9999], dtype=torch.float64).sqrt()  # SNR 16/9, 9/16, 9999
    sigma = (1 - alpha**2).sqrt()
    weights = score.weight_of(predicts, cap)(alpha, sigma)
    assert (0.1 * weights).tolist() == pytest.approx(list(expected), rel=1e-9)


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_see_their_rows_of_the_whole_batch(workers):
    data = torch.randn(6, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    whole, parts = [], []
    weight = score.weight_of("noise", None)
    score.loss(lambda x, t: whole.append(x) or x, data, draws(), weight)
    for rank in range(workers):
        rows = slice(rank * 6 // workers, (rank + 1) * 6 // workers)
        score.loss(lambda x, t: parts.append(x) or x, data[rows], draws(rows=rows), weight)
    assert torch.equal(whole[0], torch.cat(parts))


def test_euler_maruyama_makes_the_gaussian_that_the_closed_form_says():
    count = 60000
    modes = Modes(VARIANCES, MEAN**2)
    for steps in (20, 60):
        seen: list[Tensor] = []
        score.euler_maruyama(exact, start(count), steps, noises(count), seen.append)
        grid, last = Grid(steps), steps - 1
        e, rate = grid.predict(exact, seen[-2], last), grid.h * grid.beta[last]  # no denoising: a step like the others
        x = seen[-2] + rate * (seen[-2] / 2 - e / grid.sigma[last]) + rate**0.5 * noises(count)(last)
        x = x.flatten(1)
        variance, gain = euler_output(modes, steps)
        assert torch.allclose(x.var(0), variance, rtol=0.03)
        assert torch.allclose(x.mean(0), gain * MEAN, atol=0.03)
        correlation = torch.corrcoef(x.T) - torch.eye(4)
        assert correlation.abs().max() < 0.02


def test_the_euler_error_halves_when_the_steps_double_and_goes_to_zero():
    modes = Modes(VARIANCES, MEAN**2)
    errors = [(euler_output(modes, steps)[0] - VARIANCES).abs() for steps in (1000, 2000, 4000, 8000)]
    for coarse, fine in zip(errors, errors[1:]):
        assert ((coarse / fine - 2).abs() < 0.4).all()  # within 20 %
    assert (errors[-1] / VARIANCES).max() < 3e-3
    gains = [(euler_output(modes, steps)[1] - 1).abs() for steps in (1000, 2000)]
    assert gains[1].max() < 0.6 * gains[0].max() < 0.01


def test_the_last_step_takes_out_the_noise_that_is_left():
    x = start(8)
    steps, e = 10, exact(x, torch.full((8,), 0.1, dtype=torch.float64))
    grid = Grid(steps)
    assert grid.t[0] == 1 and grid.t[-1] == 0 and len(grid.t) == 11
    clean = grid.clean(x, e, 9)
    alpha, sigma = VP.alpha(torch.tensor(0.1).double()), VP.sigma(torch.tensor(0.1).double())
    shrink = alpha * VARIANCES / (alpha**2 * VARIANCES + sigma**2)  # the posterior mean of Gaussian data
    wanted = MEAN.view(1, 4, 1, 1) + shrink.view(1, 4, 1, 1) * (x - alpha * MEAN.view(1, 4, 1, 1))
    assert torch.allclose(clean, wanted, atol=1e-6)
    seen = []
    ends = {
        name: solver(lambda x, t: seen.append(t[0].item()) or exact(x, t), x, steps, noises(8))
        for name, solver in score.SOLVERS.items()
    }
    assert len(ends) == 4 and all(end.isfinite().all() for end in ends.values())
    assert min(seen) == pytest.approx(1e-3)  # the network is never asked about the clean image itself
    assert sorted(set(seen))[1] == pytest.approx(score.ratio_times(steps)[-3])


def test_dpm_solvers_times_are_even_in_the_logarithm_of_signal_to_noise():
    for steps in (2, 7, 20):
        times = torch.tensor(score.ratio_times(steps), dtype=torch.float64)
        assert len(times) == steps + 1 and (times[0], times[-1]) == (1, 0)
        assert times[-2].item() == pytest.approx(1e-3)
        ratios = VP.log_ratio(times[:-1])
        assert torch.allclose(ratios.diff(), (ratios[-1] - ratios[0]) / (steps - 1), rtol=1e-6)
        assert torch.allclose(VP.alpha(times[:-1]) / VP.sigma(times[:-1]), ratios.exp(), rtol=1e-9)
    assert score.ratio_times(1) == [1, 0]


@pytest.mark.parametrize(("name", "order"), [("ode-euler", 1), ("ode-heun", 2), ("dpm-solver++", 2)])
def test_the_errors_of_the_flow_fall_with_their_order(name, order):
    errors = []
    for steps in (40, 80):
        states: list[Tensor] = []
        score.SOLVERS[name](exact, torch.ones(1, 4, 1, 1, dtype=torch.float64), steps, None, states.append)
        times = (score.ratio_times if name == "dpm-solver++" else score.times)(steps)
        k = 3 * steps // 4  # in the middle of the way: the last step is of first order
        errors.append((states[k - 1].flatten() - flow_end(times[k])).abs().max().item())
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.25)


def flow_end(t: float) -> Tensor:
    """Where the exact flow takes x = 1 from time 1 to t: x = alpha m + sqrt(s_t / s_1) (x_1 - alpha_1 m)."""
    now, first = (torch.tensor(v, dtype=torch.float64) for v in (t, 1.0))
    s = [VP.alpha(u) ** 2 * VARIANCES + VP.sigma(u) ** 2 for u in (now, first)]
    return VP.alpha(now) * MEAN + (s[0] / s[1]).sqrt() * (1 - VP.alpha(first) * MEAN)


def test_all_solvers_end_in_the_data_with_many_steps():
    for name in ("ode-euler", "ode-heun", "dpm-solver++"):
        mean, std = linear(score.SOLVERS[name], 400)
        assert torch.allclose(mean, MEAN, atol=0.03) and torch.allclose(std, VARIANCES.sqrt(), rtol=0.03)
    x = score.euler_maruyama(exact, start(40000), 200, noises(40000)).flatten(1)
    assert torch.allclose(x.mean(0), MEAN, atol=0.05) and torch.allclose(x.std(0), VARIANCES.sqrt(), rtol=0.05)


def test_dpm_solver_takes_few_steps_where_euler_takes_many():
    errors = {}
    for name in ("ode-euler", "dpm-solver++"):
        mean, std = linear(score.SOLVERS[name], 12)
        errors[name] = ((mean - MEAN).abs() + (std - VARIANCES.sqrt()).abs()).max()
    assert errors["dpm-solver++"] < 0.5 * errors["ode-euler"]


def test_dpm_solver_is_the_published_second_order_formula():
    steps, x = 15, start(3)
    grid = Grid(steps, score.ratio_times)
    lambdas = [math.log(a / s) for a, s in zip(grid.alpha[:-1], grid.sigma[:-1])]
    y, before = x, None
    for k in range(steps):
        clean = grid.clean(y, exact(y, torch.full((3,), grid.t[k], dtype=torch.float64)), k)
        if k == steps - 1:
            y = clean  # sigma = 0: the first-order update
            break
        h = lambdas[k + 1] - lambdas[k]
        if before is None:
            combined = clean
        else:
            r = (lambdas[k] - lambdas[k - 1]) / h
            combined = (1 + 1 / (2 * r)) * clean - before / (2 * r)
        y = grid.sigma[k + 1] / grid.sigma[k] * y - grid.alpha[k + 1] * math.expm1(-h) * combined
        before = clean
    assert (score.dpm_solver(exact, x, steps) - y).abs().max() < 1e-5


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("name", score.SOLVERS)
def test_few_steps_work_and_take_as_many_evaluations(name, steps):
    calls = []
    seen = []
    end = score.SOLVERS[name](lambda x, t: calls.append(t) or exact(x, t), start(2), steps, noises(2), seen.append)
    assert len(calls) == (2 * steps - 1 if name == "ode-heun" else steps)
    assert len(seen) == steps and torch.equal(seen[-1], end) and end.isfinite().all()


def test_no_step_at_all_is_refused():
    with pytest.raises(ValueError, match="0 sampling steps; allowed: at least 1"):
        score.euler_maruyama(exact, start(1), 0, noises(1))


@pytest.mark.parametrize("predicts", ["noise", "velocity", "x0"])
def test_the_right_target_of_each_prediction_gives_the_noise_and_the_velocitys_has_unit_variance(predicts):
    """For whitened data EDM's target (clean - c_skip x) / c_out is v = alpha eps - sigma y."""
    random = torch.Generator().manual_seed(0)
    data, noise = torch.randn(2, 20000, 1, 1, 1, generator=random, dtype=torch.float64)
    sizes = {"width": 8, "multipliers": [1], "blocks": 1, "attention": [], "heads": 1, "groups": 4}
    net = ScoreNet(1, 1, 8, 0, UNetNetwork(**sizes), predicts)
    for time in (0.01, 0.3, 1.0):
        t = torch.full((len(data),), time, dtype=torch.float64)
        alpha, sigma = VP.alpha(t[0]), VP.sigma(t[0])
        x = alpha * data + sigma * noise
        target = {"noise": noise, "velocity": alpha * noise - sigma * data, "x0": data}[predicts]
        net.unet.forward = lambda x, t, labels, y=target: y
        made = net(x, t).double()
        assert torch.allclose(made, noise, atol=1e-5)
        if predicts == "velocity":
            assert target.std().item() == pytest.approx(1, rel=0.02)


def test_the_network_gets_continuous_time_and_keeps_what_it_is_conditioned_on_apart():
    torch.manual_seed(0)
    sizes = {"width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [], "heads": 2, "groups": 4}
    net = ScoreNet(3, 5, 8, 2, UNetNetwork(**sizes), "velocity")
    for parameter in net.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    x, labels = torch.randn(4, 5, 8, 8), torch.tensor([0, 1, 2, 0])
    t = torch.tensor([0.1, 0.1, 0.1, 0.9])
    out = net(x, t, labels)
    assert out.shape == (4, 3, 8, 8)
    raw = net.unet(x, torch.tensor([100.0, 100.0, 100.0, 900.0]), labels, 8)[:, :3]
    alpha, sigma = (factor(t.double()).float().view(-1, 1, 1, 1) for factor in (VP.alpha, VP.sigma))
    assert torch.allclose(out, sigma * x[:, :3] + alpha * raw, atol=1e-6)
