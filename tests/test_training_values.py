"""The numbers of the training loop: an optimiser's step by its formula, and whose average the result is."""

from __future__ import annotations

from dataclasses import replace

import torch
from conftest import TRAINING
from torch import Tensor, nn

from multiscale.core.storage import Table
from multiscale.training.checkpoint import Checkpoints
from multiscale.training.loop import Run, fit
from multiscale.training.part import Part


class Pair(Part):
    """Two networks of one size; the second is the main one."""

    main = "second"

    def __init__(self):
        torch.manual_seed(0)
        x = torch.randn(32, 3).numpy()
        super().__init__("pair", Table({"x": x}), {"first": nn.Linear(3, 3), "second": nn.Linear(3, 3)})

    def turns(self, step):
        return ("first", "second")

    def loss(self, player, nets, batch, draws):
        aim = {"first": 3.0, "second": -2.0}[player]
        return (nets[player](batch["x"]) - aim * batch["x"]).square().mean(), {}


def weights(net: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(net.parameters()).detach().clone()


def test_the_average_is_that_of_the_main_player(tmp_path):
    part = Pair()
    before = weights(part.players["second"])
    training = replace(TRAINING, images=8, lr=0.1, ema_images=10**6)  # one step: half-life 0.4 of its 8 images
    found = fit(part, training, 0, Checkpoints(tmp_path, "pair", "key")).weights
    share = 1 - 0.5 ** (8 / 0.4)
    wanted = before + share * (weights(part.players["second"]) - before)
    torch.testing.assert_close(torch.cat([found["weight"].flatten(), found["bias"]]), wanted)


def test_a_step_is_adamws_with_the_settings_of_the_training():
    training = replace(TRAINING, lr=0.05, weight_decay=0.2, beta2=0.7, clip=0.0, images=10**6)
    run = Run(Pair(), training, 0)
    net = run.players["second"]
    x, first, second = weights(net).double(), 0.0, 0.0
    for step in range(1, 5):
        batch = run.fetch(step - 1)
        loss = run.part.loss("second", run.players, batch, None)[0]
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        g = torch.cat([each.flatten() for each in gradients]).double()
        first, second = 0.9 * first + 0.1 * g, 0.7 * second + 0.3 * g**2
        run.step(batch)
        net.requires_grad_(True)
        x = x * (1 - 0.05 * 0.2) - 0.05 * (first / (1 - 0.9**step)) / ((second / (1 - 0.7**step)).sqrt() + 1e-8)
        torch.testing.assert_close(weights(net).double(), x, rtol=1e-4, atol=1e-5)
