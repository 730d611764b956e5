"""Group normalisation in bf16 on a CPU: fp32 in training, torch's own otherwise."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from multiscale.networks.group_norm import GroupNorm


def test_training_in_bf16_computes_in_fp32_and_rounds_the_result():
    torch.manual_seed(0)
    norm = GroupNorm(4, 16)
    norm.weight.data, norm.bias.data = torch.randn(16), torch.randn(16)
    x = (3 * torch.randn(8, 16, 32, 32) + 1).bfloat16().requires_grad_()
    wide = x.detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    wanted = F.group_norm(wide, 4, norm.weight, norm.bias)
    assert y.dtype == torch.bfloat16 and torch.equal(y, wanted.bfloat16())
    gradient = torch.randn_like(wanted).bfloat16()
    (ours,), (exact,) = (torch.autograd.grad(out, at, gradient.to(out)) for out, at in ((y, x), (wanted, wide)))
    assert torch.equal(ours, exact.bfloat16())


def test_elsewhere_it_is_torchs():
    torch.manual_seed(0)
    norm, torchs = GroupNorm(2, 8), torch.nn.GroupNorm(2, 8)
    for x in (torch.randn(2, 8, 5, 5, requires_grad=True), torch.randn(2, 8, 5, 5).bfloat16()):
        with torch.autocast("cpu", torch.bfloat16, enabled=x.dtype == torch.bfloat16):
            assert torch.equal(norm(x), torchs(x))
