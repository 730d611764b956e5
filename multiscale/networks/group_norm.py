"""Group normalisation of all convolutional networks, in the precision that trains fastest on the device."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """torch's, except in training on a CPU in bf16: there the backward pass takes a third of the time in fp32.

    (torch 2.13, 32 and 16 channels at 16 and 32 pixels; `python -m benchmarks.group_norm`.)
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and x.device.type == "cpu" and x.dtype == torch.bfloat16:
            return super().forward(x.float()).to(x.dtype)
        return super().forward(x)
