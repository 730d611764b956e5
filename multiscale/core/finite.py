"""Numbers that are not finite, found where they would go on unseen: as weights, as black images, as features."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def unfit(tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the first tensor with a number that is not finite; None if there is none."""
    if not tensors:
        return None
    fit = torch.stack([x.isfinite().all().cpu() for x in tensors.values()])
    return None if fit.all() else next(name for name, each in zip(tensors, fit) if not each)
