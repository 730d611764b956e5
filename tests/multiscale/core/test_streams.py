"""Random numbers depend on seed, stream and index alone, not on earlier draws."""

from __future__ import annotations

import pytest
import torch

from multiscale.core.streams import Draws, Order, generator, noise_of_seeds

CPU = torch.device("cpu")


def draws(seed=0, stream="part", step=3, rows=slice(0, 8)) -> Draws:
    return Draws(seed, stream, step, 8, rows, CPU)


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_two_workers_draw_together_what_one_draws_alone(kind):
    whole = getattr(draws(), kind)("noise", 2, 3)
    shares = [getattr(draws(rows=rows), kind)("noise", 2, 3) for rows in (slice(0, 4), slice(4, 8))]
    assert torch.equal(torch.cat(shares), whole)
    assert not torch.equal(*shares)


def test_a_choice_is_the_same_on_every_worker_and_changes_from_step_to_step():
    steps = range(40)
    first, second = (
        [draws(step=s, rows=rows).choice("resolution", 4) for s in steps] for rows in (slice(0, 4), slice(4, 8))
    )
    assert first == second
    assert set(first) == {0, 1, 2, 3}


def test_every_part_of_the_address_changes_the_numbers():
    one = draws().normal("noise", 4)
    others = [draws(seed=1), draws(stream="other"), draws(step=4)]
    assert not any(torch.equal(one, other.normal("noise", 4)) for other in others)
    assert not torch.equal(one, draws().normal("prior", 4))


def test_no_number_depends_on_the_global_generator_or_on_earlier_draws():
    one = torch.randn(4, generator=generator(1, "a"))
    torch.manual_seed(7)
    torch.randn(11, generator=generator(1, "a"))
    assert torch.equal(torch.randn(4, generator=generator(1, "a")), one)


def test_the_noise_of_a_seed_does_not_depend_on_its_neighbours():
    alone, among = noise_of_seeds([5], "x", (2, 3)), noise_of_seeds([4, 5, 6], "x", (2, 3))
    assert torch.equal(alone[0], among[1])
    assert not torch.equal(among[0], among[1])


def test_every_epoch_of_an_order_is_another_permutation():
    epochs = Order(0, "part", 13).rows(0, 3 * 13).view(3, 13)
    assert torch.equal(epochs.sort(1).values, torch.arange(13).expand(3, 13))
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3


def test_an_order_can_be_entered_anywhere_and_crosses_epochs():
    sequence = Order(0, "part", 7).rows(0, 40)
    for start in range(20):
        for count in (1, 5, 7, 18):  # 18 rows touch three or four epochs of 7
            assert torch.equal(Order(0, "part", 7).rows(start, count), sequence[start : start + count])
