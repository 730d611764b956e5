"""The discriminator's head on a diffusion transformer's features (SwD, arXiv 2503.16397, section 3.2)."""

from __future__ import annotations

from torch import Tensor, nn

LAYERS = 4


def widths(width: int) -> list[int]:
    """From the features' width down to one logit, evenly and cut to integers: 1536, 1152, 768, 384, 1."""
    return [int(width + (1 - width) * k / LAYERS) for k in range(LAYERS + 1)]


class TokenHead(nn.Sequential):
    """Tokens (N, T, D) -> logits (N, 1): their mean, then four times LayerNorm, GELU, Linear."""

    def __init__(self, width: int):
        sizes = widths(width)
        layers = ((nn.LayerNorm(a), nn.GELU(), nn.Linear(a, b)) for a, b in zip(sizes, sizes[1:]))
        super().__init__(*(module for layer in layers for module in layer))

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens.float().mean(1))
