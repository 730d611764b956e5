"""The optimisers of a training: AdamW, or Muon for the weight matrices with AdamW for the rest."""

from __future__ import annotations

from typing import cast

import torch
from torch import nn

from multiscale.training.muon import Muon
from multiscale.training.part import Training

NARROW = 8  # fewer inputs or outputs than this mark a layer at the images' end, which AdamW trains


def optimizers(net: nn.Module, training: Training) -> list[torch.optim.Optimizer]:
    """The optimisers that update a network together, each with the peak learning rate."""
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    matrices = _matrices(net) if training.optimizer == "muon" else []
    own = {id(weight) for weight in matrices}
    rest = [parameter for parameter in trained if id(parameter) not in own]
    adamw = torch.optim.AdamW(
        rest, lr=training.lr, betas=(0.9, training.beta2), weight_decay=training.weight_decay, fused=True
    )
    return [adamw, Muon(matrices, training.lr, training.weight_decay)] if matrices else [adamw]


def _matrices(net: nn.Module) -> list[nn.Parameter]:
    """The weights of the linear layers and convolutions that Muon trains."""
    layers = [module for module in net.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    weights = [cast(nn.Parameter, layer.weight) for layer in layers]
    return [weight for weight in weights if weight.requires_grad and min(weight.shape[:2]) >= NARROW]
