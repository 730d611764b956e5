"""The operations of a training against counts by hand, turn by turn."""

from __future__ import annotations

import torch
from torch import nn

from multiscale.core.models import ModelConfig
from multiscale.core.storage import Table
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
