"""Muon: momentum, whose singular values are set to about 1 in each weight matrix (github.com/KellerJordan/Muon).

torch's optimiser does the same for one matrix after another, in bf16, which is a quarter of the step of a small UNet on
a CPU. Here matrices of one shape go together, and the iteration runs on their smaller Gram matrices: half of the time.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from multiscale.core.device import full_precision
from multiscale.training.parallel import laid_out, whole

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Keller Jordan, as in torch
ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """The weights of linear layers (out, in) and of convolutions (out, in, k, k), which are matrices with `out` rows.

    Nesterov momentum. Updates are scaled to the root mean square of AdamW's, so that a learning rate means the same for
    both (arXiv 2502.16982). Weight decay is decoupled.
    """

    def __init__(self, weights: list[nn.Parameter], lr: float, weight_decay: float):
        super().__init__(weights, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        loss = closure() if closure else None
        for group in self.param_groups:
            alike = defaultdict(list)  # weights and their updates, by the sides of the matrices
            for weight in group["params"]:
                if weight.grad is not None:
                    state = self.state[weight]
                    if not state:
                        state["momentum_buffer"] = torch.zeros_like(weight)
                    momentum = state["momentum_buffer"]
                    momentum.lerp_(weight.grad, 1 - MOMENTUM)
                    rows = whole(weight.grad.lerp(momentum, MOMENTUM)).movedim(1, -1).flatten(1)
                    alike[min(rows.shape), max(rows.shape)].append((weight, rows))
            for (short, long), entries in alike.items():
                wide = torch.stack([rows if len(rows) == short else rows.mT for _, rows in entries])
                # In fp32, infinite if need be: torch refuses a larger factor, and the loop tells of weights that break.
                rate = torch.tensor(group["lr"] * 0.2 * math.sqrt(long)).item()
                for (weight, rows), found in zip(entries, orthogonal(wide)):
                    update = found if len(rows) == short else found.mT
                    shape = (weight.shape[0], *weight.shape[2:], weight.shape[1])  # inputs last, as in `rows`
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    weight.sub_(laid_out(update.reshape(shape).movedim(-1, 1), weight), alpha=rate)
        return loss


def orthogonal(x: Tensor) -> Tensor:
    """Matrices (K, n, m), n <= m, with singular values of about 1 (0.7 to 1.2) and the same singular vectors.

    Newton-Schulz, X <- (a + b S + c S^2) X with S = X X^T (n, n). All these polynomials of S commute, so their product
    is found first, and meets X once. In TF32 the rounding of S would grow with it: directions that are next to none
    come out 14 times too large.
    """
    a, b, c = COEFFICIENTS
    x = x.float()
    x = x / x.flatten(1).norm(dim=1).clamp_min(1e-7).view(-1, 1, 1)
    unit = torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    with full_precision():
        gram, product = x @ x.mT, unit
        for _ in range(ITERATIONS):
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c) + a * unit
            product, gram = factor @ product, factor @ gram @ factor
        return product @ x
