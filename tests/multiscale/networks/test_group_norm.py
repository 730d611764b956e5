"""Group normalisation in bf16 on a CPU: fp32 for what torch is slow with, torch's own otherwise."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multiscale.networks.group_norm import GroupNorm, use_in


def norm_of(groups: int, channels: int) -> GroupNorm:
    """With weights drawn at random."""
    norm = GroupNorm(groups, channels)
    norm.weight.data, norm.bias.data = torch.randn(channels), torch.randn(channels)
    return norm


def images(count: int, channels: int, side: int) -> Tensor:
    """In bf16, channels last as in the networks."""
    x = 3 * torch.randn(count, channels, side, side) + 1
    return x.bfloat16().to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "channels, groups, side, trains, dtype",
    [
        (16, 4, 32, True, torch.float32),
        (16, 4, 31, False, torch.float32),
        (24, 1, 8, True, torch.float32),
        (16, 4, 32, False, torch.bfloat16),
        (32, 2, 16, True, torch.bfloat16),
    ],
)
def test_torch_computes_in_the_precision_that_it_is_fast_in(channels, groups, side, trains, dtype, monkeypatch):
    torch.manual_seed(0)
    seen, own = [], nn.GroupNorm.forward
    monkeypatch.setattr(nn.GroupNorm, "forward", lambda norm, x: seen.append(x.dtype) or own(norm, x))
    norm = norm_of(groups, channels)
    x = images(8, channels, side).requires_grad_(trains)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    assert seen == [dtype] and y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), F.group_norm(x.float(), groups, norm.weight, norm.bias), rtol=0.01, atol=0.02)


def test_the_gradient_of_few_channels_is_that_of_fp32():
    torch.manual_seed(0)
    norm = norm_of(4, 16)
    x = images(8, 16, 16).requires_grad_()
    wide = x.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    wanted = F.group_norm(wide, 4, norm.weight, norm.bias)
    gradient = torch.randn_like(wanted).bfloat16()
    (ours,), (exact,) = (torch.autograd.grad(out, at, gradient.to(out)) for out, at in ((y, x), (wanted, wide)))
    assert torch.equal(ours, exact.bfloat16())


def test_fp32_is_torchs():
    x, norm = torch.randn(2, 8, 5, 5, requires_grad=True), norm_of(2, 8)
    assert torch.equal(norm(x), F.group_norm(x, 2, norm.weight, norm.bias))


def test_a_network_of_others_normalises_as_ours():
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(nn.GroupNorm(2, 8)), nn.BatchNorm2d(8))
    weights = net.state_dict()
    assert use_in(net) is net and type(net[1][0]) is GroupNorm and type(net[2]) is nn.BatchNorm2d
    assert net.state_dict().keys() == weights.keys() and net[1][0].num_groups == 2
