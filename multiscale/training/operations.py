"""The floating-point operations of a training, counted on real steps of few images."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from multiscale.core.device import autocast
from multiscale.core.streams import Draws
from multiscale.plan import FORMULAS
from multiscale.training.part import Part

IMAGES, STEPS = 2, 16  # of a step, and steps at least: parts draw resolutions, levels and turns at random


class Counter(TorchDispatchMode):
    """Counts by torch's formulas, as its FlopCounterMode does, which takes ten times as long for its modules' sums."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's is not typed
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if formula := FORMULAS.get(func.overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


def flops_per_image(part: Part, precision: str, device: torch.device) -> float:
    """Operations for an image in training, backward passes included and optimisers left out; a multiply-add counts two.

    The mean over whole cycles of steps. The part is used up: its networks hold gradients.
    """
    count = min(IMAGES, len(part.data))
    cycle = getattr(part, "cycle", 1)
    steps = -(-STEPS // cycle) * cycle
    trained = {name: [p for p in net.parameters() if p.requires_grad] for name, net in part.networks.items()}
    for net in (*part.networks.values(), *part.frozen.values()):
        net.to(device)
    rows = part.data[torch.arange(count)]
    batch = {key: value.to(device) for key, value in rows.items()}
    with Counter() as counter:
        for step in range(steps):
            draws = Draws(0, part.name, step, count, slice(0, count), device)
            for name in part.turns(step):
                for other, parameters in trained.items():
                    for parameter in parameters:
                        parameter.requires_grad_(other == name)
                with autocast(precision, device):
                    loss, _ = part.loss(name, part.networks, batch, draws)
                loss.backward()
    mean: float = counter.flops / (count * steps)
    return mean
