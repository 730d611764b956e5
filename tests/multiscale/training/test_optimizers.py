"""Muon trains the weight matrices of a network, AdamW the rest."""

from __future__ import annotations

import torch
from conftest import TRAINING, replace
from torch import nn

from multiscale.networks.dit import DiT
from multiscale.networks.unet import UNetNetwork
from multiscale.training.checkpoint import flatten_optimizer, restore_optimizer
from multiscale.training.muon import Muon, orthogonal
from multiscale.training.optimizers import optimizers

MUON = replace(TRAINING, optimizer="muon", lr=0.02, weight_decay=0.1)


def convolution(layout: torch.memory_format = torch.channels_last) -> nn.Conv2d:
    torch.manual_seed(3)
    return nn.Conv2d(12, 10, 3).to(memory_format=layout)


def stepped(net: nn.Conv2d, used: list[torch.optim.Optimizer], steps: int) -> None:
    for step in range(steps):
        torch.manual_seed(step)
        net(torch.randn(4, 12, 5, 5)).square().sum().backward()
        for optimizer in used:
            optimizer.step()
            optimizer.zero_grad()


def test_a_convolution_is_updated_as_the_matrix_of_its_taps_by_torchs_muon(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)  # in which torch's iterates
    for layout in (torch.channels_last, torch.contiguous_format):
        net, twin = convolution(layout), convolution(layout)
        matrix = nn.Parameter(twin.weight.detach().permute(0, 2, 3, 1).reshape(10, 108).clone())
        muon = torch.optim.Muon([matrix], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        adamw = torch.optim.AdamW([twin.bias], lr=0.02, betas=(0.9, MUON.beta2), weight_decay=0.1)
        stepped(net, optimizers(net, MUON), 3)
        for step in range(3):
            torch.manual_seed(step)
            twin(torch.randn(4, 12, 5, 5)).square().sum().backward()
            matrix.grad = twin.weight.grad.permute(0, 2, 3, 1).reshape(10, 108)
            muon.step()
            adamw.step()
            twin.zero_grad()
            twin.weight.data.copy_(matrix.data.view(10, 3, 3, 12).permute(0, 3, 1, 2))
        torch.testing.assert_close(net.weight.data.permute(0, 2, 3, 1).reshape(10, 108), matrix.data)
        torch.testing.assert_close(net.bias.data, twin.bias.data)


def test_a_learning_rate_beyond_fp32_breaks_the_weights_as_that_of_adamw_does():
    for optimizer in ("muon", "adamw"):
        net = convolution()
        stepped(net, optimizers(net, replace(MUON, lr=1e300, optimizer=optimizer)), 1)
        assert not net.weight.isfinite().any()


def test_weights_of_all_shapes_are_updated_as_by_torchs_muon(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "bfloat16", torch.Tensor.float)
    torch.manual_seed(0)
    shapes = [(8, 12), (12, 8), (8, 12), (9, 9), (9, 9)]  # the first three go together
    ours, theirs = ([nn.Parameter(torch.ones(shape)) for shape in shapes] for _ in range(2))
    pair = (
        Muon(ours, lr=0.02, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        for one, other in zip(ours, theirs):
            one.grad = other.grad = torch.randn(one.shape)
        for optimizer in pair:
            optimizer.step()
    for one, other in zip(ours, theirs):
        torch.testing.assert_close(one, other)


def test_singular_values_follow_the_polynomial_and_vectors_stay():
    torch.manual_seed(1)
    matrices = torch.randn(3, 6, 15) * torch.tensor([1e-3, 1.0, 50.0]).view(-1, 1, 1)  # the scale does not matter
    for matrix, found in zip(matrices, orthogonal(matrices), strict=True):
        u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
        s = s / s.square().sum().sqrt()
        for _ in range(5):
            s = 3.4445 * s - 4.775 * s**3 + 2.0315 * s**5
        torch.testing.assert_close(found.double(), u * s @ v, rtol=1e-3, atol=1e-4)
    assert not orthogonal(torch.zeros(1, 4, 5)).any()


def test_newton_schulz_is_in_fp32_where_tf32_is_allowed(monkeypatch):
    matmul, seen, product = torch.backends.cuda.matmul, [], torch.baddbmm
    monkeypatch.setattr(torch, "baddbmm", lambda *a, **b: seen.append(matmul.allow_tf32) or product(*a, **b))
    before = matmul.allow_tf32
    try:
        matmul.allow_tf32 = True
        orthogonal(torch.randn(1, 4, 5))
        assert seen and not any(seen) and matmul.allow_tf32
    finally:
        matmul.allow_tf32 = before


def test_layers_that_touch_images_and_everything_that_is_no_matrix_stay_with_adamw():
    net = UNetNetwork(width=8, multipliers=[1, 2], blocks=1, attention=[4], heads=1, groups=4).build(1, 8, classes=3)
    adamw, muon = optimizers(net, MUON)
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    left = {names[id(parameter)] for parameter in adamw.param_groups[0]["params"]}
    taken = {names[id(weight)] for weight in muon.param_groups[0]["params"]}
    assert not left & taken and left | taken == set(names.values())
    matrices = {name for name in left if net.get_parameter(name).ndim > 1}
    assert matrices == {"stem.weight", "head.weight", "label.weight"}
    assert {"down.0.weight", "time.mlp.2.weight", "middle.0.attention.qkv.weight"} <= taken


def test_without_muon_adamw_trains_everything_and_frozen_weights_are_left_alone():
    net = DiT(4, 4, 1, 16, 2, 2, classes=3)
    net.patches.requires_grad_(False)
    (adamw,) = optimizers(net, replace(MUON, optimizer="adamw"))
    assert len(adamw.param_groups[0]["params"]) == len(list(net.parameters())) - 2
    assert all(weight is not net.patches.weight for weight in optimizers(net, MUON)[1].param_groups[0]["params"])


def test_a_resumed_muon_goes_on_with_its_momentum():
    net, twin = convolution(), convolution()
    stepped(net, optimizers(net, MUON), 4)
    first = optimizers(twin, MUON)
    stepped(twin, first, 2)
    resumed = optimizers(twin, MUON)
    for before, after in zip(first, resumed):
        restore_optimizer("o", after, flatten_optimizer("o", before))
    for step in (2, 3):
        torch.manual_seed(step)
        twin(torch.randn(4, 12, 5, 5)).square().sum().backward()
        for optimizer in resumed:
            optimizer.step()
            optimizer.zero_grad()
    assert torch.equal(net.weight, twin.weight) and torch.equal(net.bias, twin.bias)
