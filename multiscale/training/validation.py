"""The validation loss: the error on held-out images, at fixed noise levels and with fixed noise.

A part sees each image in one of its `views`, at one level. The levels of a view are the middles of equal parts of 0..1.
Which images, levels and noise depends on the number of images alone: not on the seed, the batch or the workers. So the
losses of two trainings, or of two moments of one, differ by what was learnt and by no draw.
"""

from __future__ import annotations

import torch
from torch import nn

from multiscale.core.streams import Held, generator
from multiscale.training.part import Part

NAME = "validation_loss"


@torch.no_grad()
def validation_loss(part: Part, net: nn.Module, images: int, batch: int, device: torch.device) -> float | None:
    """The mean error of a network in the place of the part's main one, over about `images` held-out images.

    They are rounded down to the same number for each view; a short data set comes round. `batch` limits the images of
    a call. None for a part that has no such error, or no held-out images. A collective call for a sharded network.
    """
    if part.held_out is None or not images:
        return None
    net.eval()
    levels = max(1, images // part.views)
    count = levels * part.views
    order = torch.randperm(count, generator=generator(0, "validation/order"))  # data may be sorted by class
    rows = (torch.arange(count) * len(part.held_out) // count)[order]
    total = 0.0
    for view in range(part.views):
        for places in torch.arange(levels).split(batch):
            seeds = places * part.views + view
            held = Held(seeds.tolist(), ((places + 0.5) / levels).to(device), view)
            found = {key: x.to(device) for key, x in part.held_out[rows[seeds]].items()}
            errors = part.errors(net, found, held)
            if errors is None:
                return None
            total += errors.double().sum().item()
    return total / count
