"""The operations of a training against counts by hand, turn by turn."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from parts import build
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from multiscale.core.models import ModelConfig
from multiscale.core.storage import Table
from multiscale.core.streams import Draws
from multiscale.training import operations
from multiscale.training.part import Part

WIDE = 8


class Pair(Part):
    """A network of two layers each step; every third step a discriminator of one layer, through the frozen first."""

    cycle = 3

    def __init__(self):
        first, other = (nn.Linear(WIDE, WIDE, bias=False) for _ in range(2))
        net = nn.Sequential(nn.Linear(WIDE, WIDE, bias=False), nn.Linear(WIDE, WIDE, bias=False))
        super().__init__("pair", Table({"x": torch.ones(5, WIDE).numpy()}), {"net": net, "other": other}, ModelConfig)
        self.frozen = {"first": first.requires_grad_(False)}

    def turns(self, step):
        return ("net", "other") if step % 3 == 2 else ("net",)

    def loss(self, network, nets, batch, draws):
        return nets[network](self.frozen["first"](batch["x"])).square().mean(), {}


def test_an_image_costs_the_products_of_its_forward_and_backward_passes():
    """2 WIDE^2 a product: 1 frozen, 2 forward, 3 backward (not for the input of the first); 1, 1 and 1 of the other."""
    before = torch.random.get_rng_state()
    part = Pair()
    torch.random.set_rng_state(before)
    found = operations.flops_per_image(part, "fp32", torch.device("cpu"))
    assert found == (6 + 3 / 3) * 2 * WIDE**2
    assert torch.equal(torch.random.get_rng_state(), before), "no number is drawn but from named streams"


class Varied(Part):
    """Now and then another size of input, or a product beside the network; its network keeps running averages."""

    def __init__(self):
        net = nn.Sequential(nn.Linear(WIDE, WIDE), nn.BatchNorm1d(WIDE), nn.Linear(WIDE, WIDE))
        net[0].requires_grad_(False)
        super().__init__("varied", Table({"x": torch.ones(5, WIDE).numpy()}), {"net": net}, ModelConfig)

    def loss(self, network, nets, batch, draws):
        out = nets[network](batch["x"].repeat(1 + draws.choice("size", 3), 1))
        out = out @ torch.ones(WIDE, WIDE) if draws.choice("product", 2) else out
        return out.square().mean(), {}


def test_steps_of_like_shapes_are_counted_once_and_the_mean_is_that_of_all():
    part = Varied()
    with FlopCounterMode(display=False) as counter:
        for step in range(operations.STEPS):
            draws = Draws(0, part.name, step, 2, slice(0, 2), torch.device("cpu"))
            part.loss("net", part.networks, part.data[torch.arange(2)], draws)[0].backward()
    for parameter in part.networks["net"].parameters():
        parameter.grad = None
    net, before = part.networks["net"], copy.deepcopy(part.networks["net"].state_dict())
    found = operations.flops_per_image(part, "fp32", torch.device("cpu"))
    assert found == counter.get_total_flops() / (2 * operations.STEPS)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items()), "the part is as before"
    assert [p.requires_grad for p in net.parameters()] == [False] * 2 + [True] * 4
    assert all(p.grad is None for p in net.parameters()) and "forward" not in vars(net)


class Rare(Part):
    """One step in a hundred sees five times as many images, one in two twice as many."""

    def __init__(self):
        net = nn.Linear(WIDE, WIDE, bias=False)
        super().__init__("rare", Table({"x": torch.ones(5, WIDE).numpy()}), {"net": net}, ModelConfig)

    def odds(self):
        return {"rare": {7: 1, 8: 99}, "half": {0: 1, 1: 1}}

    def loss(self, network, nets, batch, draws):
        times = (5 if draws.choice("rare", 100) == 7 else 1) * (1 + draws.choice("half", 2))
        return nets[network](batch["x"].repeat(times, 1)).square().mean(), {}


def test_what_a_part_says_that_it_draws_counts_as_often_as_it_comes():
    """2 WIDE^2 forward and as many for the weights: (1 x 5 + 99 x 1) / 100 x (1 + 2) / 2 times."""
    found = operations.flops_per_image(Rare(), "fp32", torch.device("cpu"))
    assert found == 1.04 * 1.5 * 2 * 2 * WIDE**2


@pytest.mark.parametrize("name, steps", [("ssd", 1), ("pyramidal", 1), ("teacher", 1), ("details", operations.STEPS)])
def test_the_parts_of_the_methods_say_all_that_they_draw(name, steps, decomposed):
    """Torch's counter over each value of the integer that a step draws, each as often as the others."""
    part, counts = build(name, decomposed), []

    @dataclass(frozen=True)
    class Known(Draws):
        value: int = 0

        def choice(self, name, count):
            counts.append(count)
            return self.value

    def total(value):
        with FlopCounterMode(display=False) as counter:
            for step in range(steps):
                draws = Known(0, part.name, step, 2, slice(0, 2), torch.device("cpu"), value=value)
                for turn in part.turns(step):
                    for network, net in part.networks.items():
                        net.requires_grad_(network == turn)
                    part.loss(turn, part.networks, part.data[torch.arange(2)], draws)[0].backward()
        for net in part.networks.values():
            net.requires_grad_(True)
        return counter.get_total_flops()

    with sdpa_kernel(SDPBackend.MATH):  # of which torch's counter knows the products
        totals = [total(0)]
        totals += [total(value) for value in range(1, counts[0])]
        found = operations.flops_per_image(part, "fp32", torch.device("cpu"))
    assert len(set(counts)) == 1 < len(set(totals))
    assert found == pytest.approx(sum(totals) / (2 * steps * len(totals)), rel=1e-9)
