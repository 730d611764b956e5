"""The moving average of a network's weights, which is the result of a training."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from multiscale.training.parallel import local


class EMA:
    """A moving average of a network's weights with a half-life in images, at most 5 % of those seen so far (EDM2).

    With a half-life of 0 it equals the network's own weights. Frozen weights are shared; where they are to be sharded,
    only `share` sees to it.
    """

    def __init__(self, net: nn.Module, half_life: int, sharded: bool = False):
        self.net, self.half_life = net, half_life
        shared = {} if sharded else {id(p): p for p in net.parameters() if not p.requires_grad}
        self.average = copy.deepcopy(net, dict[int, Any](shared)).requires_grad_(False)

    def share(self, device: torch.device) -> None:
        """Takes the network's own frozen weights in place of the copies, once both are sharded on the device."""
        frozen = {key: p for key, p in self.net.named_parameters() if not p.requires_grad}
        self.average.load_state_dict(frozen, strict=False, assign=True)
        self.average.to(device)  # FSDP lets go of the copies

    @torch.no_grad()
    def update(self, batch: int, seen: int) -> None:
        half_life = max(min(self.half_life, seen * 0.05), 1e-8)
        weight = 1 - 0.5 ** (batch / half_life)
        pairs = zip(self.average.parameters(), self.net.parameters())
        average, net = zip(*((local(mine), local(its)) for mine, its in pairs if mine is not its))
        torch._foreach_lerp_(average, net, weight)
        for mine, its in zip(self.average.buffers(), self.net.buffers()):
            mine.copy_(its)
