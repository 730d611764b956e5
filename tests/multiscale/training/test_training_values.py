"""The numbers of training: an optimiser's step, the moving average, the classifier's loss."""

from __future__ import annotations

import copy

import numpy as np
import torch
from conftest import CONFIG, TRAINING, replace
from torch import Tensor, nn

from multiscale.core.storage import Table
from multiscale.core.streams import Draws
from multiscale.evaluation.classifier import ClassifierConfig, ClassifierPart
from multiscale.training.checkpoint import Checkpoints
from multiscale.training.loop import EMA, Trainer, fit
from multiscale.training.part import Part


class Pair(Part):
    """Two networks of the same size; the second is the main one."""

    main = "second"

    def __init__(self):
        torch.manual_seed(0)
        x = torch.randn(32, 3).numpy()
        super().__init__("pair", Table({"x": x}), {"first": nn.Linear(3, 3), "second": nn.Linear(3, 3)}, CONFIG)

    def turns(self, step):
        return ("first", "second")

    def loss(self, network, nets, batch, draws):
        aim = {"first": 3.0, "second": -2.0}[network]
        return (nets[network](batch["x"]) - aim * batch["x"]).square().mean(), {}


def weights(net: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(net.parameters()).detach().clone()


def test_the_average_is_that_of_the_main_network(tmp_path):
    part = Pair()
    before = weights(part.networks["second"])
    training = replace(TRAINING, images=8, lr=0.1, ema_images=10**6)  # one step: half-life 0.4 of its 8 images
    found = fit(part, training, 0, Checkpoints(tmp_path, "pair", "key")).weights
    share = 1 - 0.5 ** (8 / 0.4)
    wanted = before + share * (weights(part.networks["second"]) - before)
    torch.testing.assert_close(torch.cat([found["weight"].flatten(), found["bias"]]), wanted)


def test_a_step_is_adamws_with_the_settings_of_the_training():
    training = replace(TRAINING, lr=0.05, weight_decay=0.2, beta2=0.7, clip=0.0, images=10**6)
    run = Trainer(Pair(), training, 0)
    net = run.networks["second"]
    x, first, second = weights(net).double(), 0.0, 0.0
    for step in range(1, 5):
        batch = run.fetch(step - 1)
        loss = run.part.loss("second", run.networks, batch, None)[0]
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        g = torch.cat([each.flatten() for each in gradients]).double()
        first, second = 0.9 * first + 0.1 * g, 0.7 * second + 0.3 * g**2
        run.step(batch)
        net.requires_grad_(True)
        x = x * (1 - 0.05 * 0.2) - 0.05 * (first / (1 - 0.9**step)) / ((second / (1 - 0.7**step)).sqrt() + 1e-8)
        torch.testing.assert_close(weights(net).double(), x, rtol=1e-4, atol=1e-5)


def test_the_average_has_the_buffers_of_the_network_as_they_are():
    net = nn.BatchNorm1d(3)
    ema = EMA(net, 100)
    net(torch.randn(8, 3) + 5)
    ema.update(8, 8000)
    assert torch.equal(ema.average.running_mean, net.running_mean) and net.running_mean.abs().min() > 0.1


class Capped(Part):
    """A trained layer on a frozen one."""

    def __init__(self, trained: nn.Linear, frozen: nn.Linear):
        net = nn.Sequential(frozen.requires_grad_(False), trained)
        super().__init__("capped", Table({"x": np.ones((16, 3), np.float32)}), {"net": net}, CONFIG)

    def loss(self, network, nets, batch, draws):
        return nets["net"](batch["x"]).square().mean(), {}


def test_frozen_weights_stand_once_and_in_no_checkpoint():
    frozen = nn.Linear(3, 3)
    run = Trainer(Capped(nn.Linear(3, 3), frozen), TRAINING, 0)
    run.step(run.fetch(0))
    assert run.ema.average[0].weight is run.networks["net"][0].weight is frozen.weight
    tensors, about = run.state()
    own = {f"{kind}.1.{key}" for kind in ("ema", "net.net") for key in ("weight", "bias")}
    assert {key for key in tensors if key.startswith(("ema", "net"))} == own
    again = Trainer(Capped(nn.Linear(3, 3), copy.deepcopy(frozen)), TRAINING, 0)
    again.restore({key: value.clone() for key, value in tensors.items()}, about)
    for each in (run, again):
        each.step(each.fetch(1))
    for mine, its in zip(run.networks["net"].parameters(), again.networks["net"].parameters()):
        assert torch.equal(mine, its)
    assert all(torch.equal(value, again.weights()[key]) for key, value in run.weights().items())


def test_the_classifier_learns_from_images_shifted_by_up_to_an_eighth_with_smoothed_labels():
    """Cross-entropy with label smoothing of 0.05, on images shifted with replicated borders."""
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(5, -1, -1, -1)
    labels, shown = torch.tensor([0, 1, 2, 0, 1]), []

    def logits_of(images: Tensor) -> Tensor:
        shown.append(images)
        return torch.stack([images[:, 0, 0, 0], images[:, 0, 5, 5], -images[:, 0, 2, 9]], 1)

    part = ClassifierPart(
        "classifier", Table({"pixels": pixels.numpy()}), ClassifierConfig(channels=1, classes=3, width=8, stages=1)
    )
    signed, shifts = pixels / 127.5 - 1, set()
    for step in range(40):
        draws = Draws(0, "classifier", step, 5, slice(0, 5), torch.device("cpu"))
        loss, found = part.loss("net", {"net": logits_of}, {"pixels": pixels, "label": labels}, draws)
        matches = [
            (top, left)
            for top in range(-2, 3)
            for left in range(-2, 3)
            if torch.equal(shown[-1], signed[..., moved(top), :][..., moved(left)])
        ]
        assert len(matches) == 1
        shifts.add(matches[0])
        logits = logits_of(shown[-1])
        log_p = logits - logits.exp().sum(1, keepdim=True).log()
        wanted = -(0.95 * log_p[torch.arange(5), labels] + 0.05 * log_p.mean(1)).mean()
        torch.testing.assert_close(loss, wanted)
        assert found["accuracy"] == (logits.argmax(1) == labels).float().mean()
    assert {top for top, _ in shifts} == {left for _, left in shifts} == set(range(-2, 3))
    assert len(shifts) > 10, "they are shifted apart"


def moved(by: int) -> Tensor:
    """The indices in a row or column after a shift, with the border replicated."""
    return (torch.arange(16) + by).clamp(0, 15)
