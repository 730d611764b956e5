"""The optimisers of a training: AdamW, or Muon for the weight matrices with AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from multiscale.training.part import Training

NARROW = 8  # fewer inputs or outputs than this mark a layer at the images' end, which AdamW trains


class Muon(torch.optim.Muon):
    """torch's Muon, which takes the weight (out, in, k, k) of a convolution as a matrix with `out` rows.

    Its updates are momentum with all singular values set to about 1 (github.com/KellerJordan/Muon), scaled to the
    root mean square of AdamW's, so that a learning rate means the same for both (arXiv 2502.16982).
    """

    def __init__(self, weights: list[nn.Parameter], lr: float, weight_decay: float):
        self.weights = weights
        self.matrices = [nn.Parameter(_matrix(weight.data, weight)) for weight in weights]  # in the weights' memory
        super().__init__(self.matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        for weight, matrix in zip(self.weights, self.matrices):
            matrix.grad = None if weight.grad is None else _matrix(weight.grad, weight)
        return super().step(closure)  # type: ignore[no-untyped-call]  # torch's has no types

    def zero_grad(self, set_to_none: bool = True) -> None:
        for parameter in (*self.weights, *self.matrices):
            parameter.grad = None


def _matrix(tensor: Tensor, weight: nn.Parameter) -> Tensor:
    """A weight or its gradient as a matrix, one row an output: a view where it has the layout of the weight."""
    return (tensor if weight.is_contiguous() else tensor.permute(0, 2, 3, 1)).flatten(1)


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
