"""Copies of training images are detected; typical images are not, and held-out images only one time in 100."""

from __future__ import annotations

from itertools import combinations
from math import comb

import pytest
import torch
import torch.nn.functional as F

from multiscale.evaluation import memorisation


def images(count: int, seed: int, spread: float = 1.0, resolution: int = 8) -> torch.Tensor:
    """Smooth random images of three parameters, so that neighbours are close: uint8 (N, 1, resolution, resolution)."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(3, 1, resolution, resolution, generator=torch.Generator().manual_seed(99))
    pixels = 128 + 25 * spread * torch.einsum("nk,kchw->nchw", torch.randn(count, 3, generator=generator), basis)
    return pixels.clamp(0, 255).round().to(torch.uint8)


def judged(pixels: torch.Tensor, training: torch.Tensor, held_out: torch.Tensor) -> tuple[float, bool]:
    """The verdict on images, by the whole module."""
    shrunk = [memorisation.small(each) for each in (pixels, held_out)]
    found = [memorisation.ratios(memorisation.nearest(each, memorisation.small(training))[0]) for each in shrunk]
    return memorisation.verdict(*found)


TRAINING, HELD_OUT = images(1500, 0), images(400, 1)
COPIES = TRAINING[::5]
NOISY = (COPIES + torch.randn(COPIES.shape, generator=torch.Generator().manual_seed(5))).round().clamp(0, 255).byte()


@pytest.mark.parametrize(
    "claim, pixels, least, most",
    [
        ("held-out images", images(300, 2), 0, 0.03),
        ("typical images, nearer to training images than held-out ones are", images(300, 3, spread=0.3), 0, 0.03),
        ("training images", COPIES, 1, 1),
        ("mirrored training images", COPIES.flip(-1), 1, 1),
        ("training images with a little noise", NOISY, 0.5, 0.8),
        ("half training images, half held-out ones", torch.cat([COPIES[:150], images(150, 2)]), 0.5, 0.53),
    ],
)
def test_copies_are_flagged_with_their_share_and_nothing_else_is(claim, pixels, least, most):
    share, flagged = judged(pixels, TRAINING, HELD_OUT)
    assert least <= share <= most and flagged == (least > 0), claim


def test_typical_images_are_nearer_to_training_images_than_held_out_ones_are():
    """A plain comparison of distances would flag them."""
    near, _ = memorisation.nearest(memorisation.small(images(300, 3, spread=0.3)), memorisation.small(TRAINING))
    usual, _ = memorisation.nearest(memorisation.small(HELD_OUT), memorisation.small(TRAINING))
    assert near[:, 0].mean() < 0.6 * usual[:, 0].mean()


def test_one_in_a_hundred_held_out_images_lies_below_the_limit():
    assert memorisation.verdict(torch.arange(1.0, 1001), torch.arange(0.5, 999)) == (0.009, False)
    many = torch.rand(200, 999, generator=torch.Generator().manual_seed(0))
    shares = [memorisation.verdict(row[:500], row[500:])[0] for row in many]
    assert sum(shares) / 200 == pytest.approx(0.01, abs=0.001)


@pytest.mark.parametrize("rank, below", [(1, 0), (1, 3), (1, 6), (2, 3), (2, 5), (3, 6)])
def test_the_chance_is_that_of_all_orders_of_images_and_held_out_images(rank, below, monkeypatch):
    """By enumerating the positions of 5 held-out images among 11, with `below` others before that of the rank."""
    held_out, others = torch.full((5,), 10.0), torch.full((6,), 20.0)
    others[:below] = 1
    orders = [places[rank - 1] - (rank - 1) >= below for places in combinations(range(11), 5)]
    assert len(orders) == comb(11, 5)
    chance = sum(orders) / len(orders)
    monkeypatch.setattr(memorisation, "SHARE", rank / 6 + 1e-9)
    monkeypatch.setattr(memorisation, "CHANCE", chance * (1 + 1e-9))
    assert memorisation.verdict(others, held_out) == (below / 6, True)
    monkeypatch.setattr(memorisation, "CHANCE", chance * (1 - 1e-9))
    assert memorisation.verdict(others, held_out) == (below / 6, False)


def test_the_nearest_are_those_of_all_pairs_whatever_the_blocks(monkeypatch):
    monkeypatch.setattr(memorisation, "BLOCK", 7)
    x, y = memorisation.small(images(20, 4, resolution=16)), memorisation.small(images(30, 5, resolution=16))
    pairs = [torch.cdist(each.float().flatten(1), y.float().flatten(1)) / 16 for each in (x, x.flip(-1))]
    wanted, rows = torch.minimum(*pairs).topk(2, largest=False)
    distances, nearest = memorisation.nearest(x, y)
    torch.testing.assert_close(distances, wanted, rtol=1e-4, atol=1e-4)
    assert torch.equal(nearest, rows[:, 0])


def test_a_copy_of_an_image_that_is_there_twice_is_an_exact_copy():
    twice = torch.cat([TRAINING, COPIES])
    distances, _ = memorisation.nearest(memorisation.small(COPIES), memorisation.small(twice))
    assert (memorisation.ratios(distances) == 0).all()


def test_large_images_are_compared_by_their_areas():
    small = images(2, 6, resolution=16)
    large = F.interpolate(small.float(), scale_factor=4).to(torch.uint8)
    assert (
        torch.equal(memorisation.small(large), memorisation.small(small)) and memorisation.small(small).shape[-1] == 16
    )
