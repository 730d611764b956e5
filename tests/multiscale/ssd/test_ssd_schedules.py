"""SSD's schedules of resolutions, the states that training and sampling use, and the loss weights."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from conftest import ROOT
from scipy import integrate, stats

from flows.sweeps.space import SWEEPS, Sweep
from multiscale.core.streams import Draws
from multiscale.methods.ssd.process import (
    CLEAN,
    ScaleSpace,
    ScaleSpaceProcess,
    TimestepSampler,
    gradual,
    halved,
    min_snr_weights,
    respaced,
)
from multiscale.methods.ssd.resizing import OPERATORS, Separable, bilinear
from stages.common.reading import read_yaml

PUBLISHED = {  # levels: (states a level, transitions, SNR there)
    2: ([750, 250], [750], [0.0033]),
    3: ([555, 334, 111], [555, 889], [0.045, 0.00033]),
    4: ([438, 312, 187, 63], [438, 750, 937], [0.163, 0.0033, 0.00014]),
    5: ([360, 280, 200, 120, 40], [360, 640, 840, 960], [0.358, 0.0157, 0.00078, 0.000087]),
    6: ([306, 249, 195, 139, 83, 28], [306, 555, 750, 889, 972], [0.612, 0.045, 0.0033, 0.00033, 0.00007]),
}


def process(levels=4, resolution=64, **settings) -> ScaleSpace:
    return ScaleSpaceProcess(levels=levels, **settings).build(resolution)


def counts(space: ScaleSpace) -> list[int]:
    return [sum(space.resolution(t) == resolution for t in range(space.steps)) for resolution in space.resolutions]


def draws(step: int, batch: int = 1, rows: slice | None = None, seed: int = 0) -> Draws:
    return Draws(seed, "part", step, batch, rows or slice(0, batch), torch.device("cpu"))


@pytest.mark.parametrize("levels", PUBLISHED)
def test_convex_decay_has_the_published_counts_and_transitions(levels):
    space = process(levels, resolution=256)
    states, transitions, snr = PUBLISHED[levels]
    assert counts(space) == states
    assert space.transitions == transitions
    for t, value in zip(transitions, snr):
        assert space.snr(t) == pytest.approx(value, rel=0.03)


@pytest.mark.parametrize(
    ("schedule", "gamma", "transitions"),
    [
        ("equal", 1.0, [250, 500, 750]),
        ("convex-decay", 2.0, [134, 293, 500]),
        ("sigmoid-like", 3.0, [436, 500, 564]),
        ("tanh-like", 3.0, [106, 500, 894]),
    ],
)
def test_the_other_schedules_have_the_published_transitions(schedule, gamma, transitions):
    assert process(schedule=schedule, gamma=gamma).transitions == transitions


def test_the_shipped_sweep_gives_each_schedule_its_published_exponent(monkeypatch):
    monkeypatch.chdir(ROOT)
    found = {}
    for point in Sweep.model_validate(read_yaml(SWEEPS / "ssd.yaml")).points:
        setting = {key.removeprefix("parts.ssd-2l.process."): value for key, value in point.items()}
        if setting["levels"] == 4:
            name = f"{setting['schedule']} {setting.get('gamma', '')}".strip()
            found[name] = process(**setting).transitions
    assert found == {
        "equal": [250, 500, 750],
        "convex-decay 0.5": [438, 750, 937],
        "convex-decay 2.0": [134, 293, 500],
        "sigmoid-like 3.0": [436, 500, 564],
        "tanh-like 3.0": [106, 500, 894],
    }


@pytest.mark.parametrize("gamma", [0.1, 0.5, 0.9, 0.999, 1.0, 1.5, 3.0, 60.0, 1000.0])
@pytest.mark.parametrize("schedule", ["tanh-like", "sigmoid-like"])
def test_an_exponent_is_refused_where_the_curve_turns_back_so_that_it_has_no_inverse(schedule, gamma):
    u = np.linspace(-0.5, 0.5, 200_001)
    q = np.sign(u) * np.abs(u) ** gamma + 0.5
    turns_back = (np.diff(3 * q**2 - 2 * q**3) < 0).any()  # section 4.1 of the supplement, as it stands there
    if turns_back:
        with pytest.raises(ValueError, match=f"1 to 1000 .*{schedule} with an exponent of {gamma} does not shrink"):
            process(5, schedule=schedule, gamma=gamma)
    else:
        assert process(5, schedule=schedule, gamma=gamma).levels[::999] == [0, 4]


@pytest.mark.parametrize(
    ("steps", "levels", "states"),
    [
        (100, 2, [75, 25]),
        (100, 3, [55, 34, 11]),
        (100, 4, [44, 31, 18, 7]),
        (200, 2, [150, 50]),
        (200, 3, [111, 66, 23]),
        (200, 4, [88, 62, 37, 13]),
    ],
)
def test_short_chains_have_the_same_shares_and_end_as_noisy(steps, levels, states):
    space = process(levels, steps=steps)
    assert counts(space) == states
    assert space.transitions == np.cumsum(states)[:-1].tolist()
    assert space.alpha_bar[-1] < 1e-4


def test_one_pixel_sizes_shrink_by_one_pixel_at_a_time():
    space = process(31, resolution=32, resolutions="gradual", schedule="equal")
    assert space.resolutions == list(range(32, 1, -1))
    assert len(space.transitions) == 30
    assert all(space.resolution(t - 1) - space.resolution(t) == 1 for t in space.transitions)


def test_the_identity_operator_never_shrinks():
    space = process(operator="identity")
    assert space.transitions == [] and {space.resolution(t) for t in range(1000)} == {64}


def test_images_shrink_step_by_step_not_at_once():
    space = process(3)
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    stepwise = bilinear(32, 16).apply(bilinear(64, 32).apply(x))
    assert torch.allclose(space.shrink(x, 16), stepwise, atol=1e-12)
    assert torch.equal(space.shrink(x, 64), x)
    at_once, composed = bilinear(64, 16).matrix, space.resize(64, 16).matrix
    assert (at_once - composed).norm() / at_once.norm() == pytest.approx(0.128, abs=5e-4)  # in one dimension


def test_a_batch_has_one_pair_of_resolutions_and_its_times_are_uniform():
    space = process(4, steps=100)
    sampler = TimestepSampler(space)
    seen = Counter()
    for step in range(20_000):
        times = sampler.draw(draws(step))
        seen[int(times.t)] += 1
        assert times.weight == 1
    assert stats.chisquare([seen[t] for t in range(100)]).pvalue > 0.001
    for step in range(300):
        times = sampler.draw(draws(step, batch=16))
        for t in times.t.tolist():
            assert (space.resolution(t), space.resolution(t - 1)) == (times.resolution, times.target_resolution)
    # Within a batch the times differ where they may.
    assert any(len(set(sampler.draw(draws(step, batch=16)).t.tolist())) > 8 for step in range(5))


@pytest.mark.parametrize("oversample", [1, 7])
def test_timesteps_are_exactly_uniform_once_weighted(oversample):
    space = process(4)
    sampler = TimestepSampler(space, oversample)
    share = Counter()
    for slots, (resolution, target, members), factor in zip(
        np.diff([0, *sampler.ends]), sampler.groups, sampler.factors
    ):
        for t in members.tolist():
            weight = sampler.ends[-1] / (space.steps * factor)
            share[t] += slots / sampler.ends[-1] / len(members) * weight
        assert factor == (oversample if resolution != target else 1)
    assert share == pytest.approx(dict.fromkeys(range(1000), 1 / 1000))


@pytest.mark.parametrize(
    "slot, pair", [(0, (64, 64)), (749, (64, 64)), (750, (32, 64)), (751, (32, 32)), (999, (32, 32))]
)
def test_each_of_a_thousand_slots_is_of_one_state(slot, pair, monkeypatch):
    """By hand for two levels: 750 states of the full resolution, the one that halves it, 249 of the small one."""
    monkeypatch.setattr(Draws, "choice", lambda self, name, count: slot)
    drawn = TimestepSampler(process(2)).draw(draws(0, batch=64))
    assert (drawn.resolution, drawn.target_resolution) == pair
    low, high = {(64, 64): (0, 749), (32, 64): (750, 750), (32, 32): (751, 999)}[pair]
    assert low <= drawn.t.min() and drawn.t.max() <= high


def test_oversampled_transitions_come_up_so_many_times_as_often():
    space = process(4, steps=100)
    sampler = TimestepSampler(space, oversample=10)
    drawn = [sampler.draw(draws(step)) for step in range(4000)]
    changes = [times for times in drawn if times.resolution != times.target_resolution]
    assert len(changes) / len(drawn) == pytest.approx(30 / 127, abs=0.02)
    assert {times.weight for times in changes} == {127 / 1000}
    assert {times.weight for times in drawn} == {127 / 1000, 127 / 100}
    kept = TimestepSampler(space, oversample=10, reweight=False)
    assert [kept.draw(draws(step)).t.tolist() for step in range(50)] == [times.t.tolist() for times in drawn[:50]]
    assert {kept.draw(draws(step)).weight for step in range(50)} == {1.0}


def test_all_workers_draw_one_pair_of_resolutions_and_together_what_one_draws_alone():
    sampler = TimestepSampler(process(4, steps=100))
    for step in range(100):
        whole = sampler.draw(draws(step, batch=8))
        halves = [sampler.draw(draws(step, 8, rows)) for rows in (slice(0, 4), slice(4, 8))]
        assert torch.equal(torch.cat([half.t for half in halves]), whole.t)
        assert {(half.resolution, half.target_resolution) for half in halves} == {
            (whole.resolution, whole.target_resolution)
        }


def test_errors_weigh_the_signal_to_noise_ratio_up_to_five():
    weights = min_snr_weights(process(), 5.0, "x0")
    assert all(weight == 5 for weight in weights[:130]) and weights[130] < 5
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    snr = alpha_bar / (1 - alpha_bar)
    assert weights[130:] == pytest.approx(snr[130:], rel=1e-6)
    assert weights[999] == pytest.approx(4.036e-5, rel=1e-4)
    assert weights[258] > 1 > weights[259]
    assert min_snr_weights(process(), 1.0, "x0") == [min(weight, 1.0) for weight in weights]


def test_the_signal_outweighs_the_noise_in_the_known_shares_of_pixels():
    """The information of a state for x_0 uniform on [-1, 1], 1 - 2 int_0^1 Phi(-sqrt(SNR) x) dx (section 3)."""
    space = process()
    shares = {100: 0.727, 200: 0.478, 306: 0.297, 438: 0.159, 555: 0.0845, 750: 0.0229, 937: 0.0047}
    for t, share in shares.items():
        below, _ = integrate.quad(lambda x: stats.norm.cdf(-math.sqrt(space.snr(t)) * x), 0, 1)  # noqa: B023
        assert 1 - 2 * below == pytest.approx(share, abs=6e-4)


@pytest.mark.parametrize("levels", [1, 2, 4])
@pytest.mark.parametrize("steps", [2, 25, 250, 1000])
def test_fewer_steps_keep_both_ends_and_every_transition(levels, steps):
    space = process(levels)
    kept = respaced(space, steps)
    assert kept[0] == 0 and kept[-1] == 999
    assert set(space.transitions) <= set(kept)
    assert steps <= len(kept) <= steps + levels - 1
    assert kept == sorted(set(kept))


@pytest.mark.parametrize("steps", [10, 250])
def test_a_long_step_composes_the_short_ones_and_keeps_the_marginal(steps):
    space = process(3, resolution=16)
    states = respaced(space, steps)
    pairs = list(zip(states, states[1:])) + [(500, 950)]  # the last one passes two transitions at once
    for s, t in pairs:
        long = space.transition(s, t)
        matrix, scale = torch.eye(space.resolution(s), dtype=torch.float64), 1.0
        for i in range(s + 1, t + 1):
            short = space.transition(i - 1, i)
            matrix, scale = short.operator.matrix @ matrix, scale * short.scale
        assert (long.operator.matrix - matrix).abs().max() < 1e-12
        assert long.scale == pytest.approx(scale, abs=1e-12)
        # Whatever eta is, what comes from x_t and what is drawn anew add up to the white noise of s.
        kept = long.gain * long.sigma_t
        assert (kept**2 + long.fresh**2 - long.sigma_s**2).abs().max() < 1e-12


def test_the_clean_image_is_a_state_without_noise():
    space = process()
    assert (space.signal(CLEAN), space.sigma(CLEAN), space.resolution(CLEAN)) == (1.0, 0.0, 64)


def test_an_infeasible_operator_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setitem(OPERATORS, "box", lambda before, after: Separable(1.5 * bilinear(before, after).matrix))
    with pytest.raises(ValueError, match="the operator from resolution 64 to 32 is infeasible"):
        process(operator="box")


def test_bad_schedules_are_refused_in_one_line():
    with pytest.raises(ValueError, match="36 cannot be halved 3 times; allowed: multiples of 8"):
        halved(36, 4)
    with pytest.raises(ValueError, match="1 to 1000 .*sigmoid-like with an exponent of 1001.0 does not shrink"):
        process(schedule="sigmoid-like", gamma=1001.0)  # 2^-gamma is 0 from 1075 on
    with pytest.raises(ValueError, match="at most 8 levels"):
        gradual(8, 9)
    with pytest.raises(ValueError, match="allowed: 2 to 1000"):
        respaced(process(), 1001)
    with pytest.raises(ValueError, match="steps\n.*greater than or equal to 20"):
        process(steps=19)
