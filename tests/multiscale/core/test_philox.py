"""Random numbers by address: the published vectors of Philox, and numbers of a row that depend on its address alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from multiscale.core import philox
from multiscale.core.streams import Draws

CPU = torch.device("cpu")

# Random123, tests/kat_vectors: philox4x32 10, counter[4] key[2] expected[4].
PUBLISHED = """
00000000 00000000 00000000 00000000 00000000 00000000   6627e8d5 e169c58d bc57ac4c 9b00dbd8
ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff   408f276d 41c83b0e a20bc7c6 6d5451fd
243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0   d16cfe09 94fdcceb 5001e420 24126ea1
""".strip().splitlines()


@pytest.mark.parametrize("line", PUBLISHED)
def test_the_words_are_the_published_ones(line):
    numbers = [int(word, 16) for word in line.split()]
    counter = tuple(torch.tensor([word]) for word in numbers[:4])
    assert torch.cat(philox.philox(counter, tuple(numbers[4:6]))).tolist() == numbers[6:]


def test_uniform_numbers_are_the_upper_bits_and_normal_ones_box_and_mullers():
    words = philox.words_of(3, "part/noise", 5, slice(2, 6), 12, CPU)
    numbers = words.numpy().astype(np.float64)
    assert np.array_equal(philox.uniform(words).double().numpy(), np.floor(numbers / 2**8) / 2**24)
    u, v = (numbers[:, :6] + 0.5) / 2**32, (numbers[:, 6:] + 0.5) / 2**32
    radius, angle = np.sqrt(-2 * np.log(u)), 2 * np.pi * v
    expected = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], 1)
    np.testing.assert_allclose(philox.normal(words).numpy(), expected, atol=3e-6)


def test_the_extreme_words_give_finite_numbers():
    words = torch.tensor([[0, 2**32 - 1, 0, 2**32 - 1]])
    assert philox.normal(words).isfinite().all()
    assert philox.uniform(words).max() < 1


def draws(seed=0, stream="part", step=3, rows=slice(0, 8)) -> Draws:
    return Draws(seed, stream, step, 8, rows, CPU, "device")


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 5), (2, 4)])
@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_any_workers_draw_together_what_one_draws_alone(kind, shape):
    whole = getattr(draws(), kind)("noise", *shape)
    assert whole.shape == (8, *shape) and whole.dtype == torch.float32
    for cuts in ((0, 4, 8), (0, 1, 3, 8), tuple(range(9))):
        shares = [getattr(draws(rows=slice(a, b)), kind)("noise", *shape) for a, b in zip(cuts, cuts[1:])]
        assert torch.equal(torch.cat(shares), whole)
    assert len(whole.view(8, -1)[:, 0].unique()) == 8, "each row has its own"


def test_every_part_of_the_address_changes_the_numbers():
    one = draws().normal("noise", 4)
    others = [draws(seed=1), draws(stream="other"), draws(step=4), draws(step=3 + 2**32)]
    assert not any(torch.isin(other.normal("noise", 4), one).any() for other in others)
    assert not torch.isin(draws().normal("prior", 4), one).any()


def test_a_choice_is_that_of_the_cpu():
    steps = range(20)
    theirs = [Draws(0, "part", step, 8, slice(0, 8), CPU).choice("side", 4) for step in steps]
    assert [draws(step=step).choice("side", 4) for step in steps] == theirs


def test_the_numbers_have_their_distribution_and_do_not_hang_together():
    many = Draws(0, "part", 0, 64, slice(0, 64), CPU, "device")
    noise, times = many.normal("noise", 4096).double(), many.uniform("time", 4096).double()
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    assert stats.kstest(times.flatten().numpy(), "uniform").pvalue > 1e-3
    between = torch.corrcoef(noise).fill_diagonal_(0)
    assert between.abs().max() < 6 / 64, "rows are independent"
    assert torch.corrcoef(torch.stack([noise[:, 1:].flatten(), noise[:, :-1].flatten()]))[0, 1].abs() < 0.01
