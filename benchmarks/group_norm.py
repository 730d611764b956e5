"""Forward and backward pass of group normalisation in bf16: torch's own against `multiscale.networks.group_norm`.

python -m benchmarks.group_norm     # a few seconds on one core
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from benchmarks.common import in_turn, ratio, save
from multiscale.networks.group_norm import GroupNorm

SHAPES = [(16, 16, 32, 32), (16, 32, 16, 16), (16, 64, 8, 8)]  # of the embedded UNet, batch 16


def passes(norm: nn.Module, x: torch.Tensor, gradient: torch.Tensor) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x)
    torch.autograd.grad(y, (x, *norm.parameters()), gradient)


def main(repeats: int = 60) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = {}
    for shape in SHAPES:
        x, gradient = (torch.randn(shape).bfloat16().to(memory_format=torch.channels_last) for _ in range(2))
        x.requires_grad_()
        versions = {
            name: partial(passes, norm, x, gradient)
            for name, norm in (("torch", nn.GroupNorm(4, shape[1])), ("ours", GroupNorm(4, shape[1])))
        }
        seconds = in_turn(versions, repeats)
        found["x".join(map(str, shape))] = {"times_faster": ratio(seconds, "torch", "ours"), "seconds": seconds}
    save("group_norm", {"repeats": repeats, "shapes": found})


if __name__ == "__main__":
    main()
