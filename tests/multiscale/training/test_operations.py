"""The operations of a training against counts by hand, turn by turn."""

from __future__ import annotations

import copy

import torch
from torch import nn
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
