"""WMGM's adversarial pair: an attention-gated U-Net that makes details, and a convolutional discriminator of images.

Layers as in the paper's released code (arXiv 2411.09356), whose sizes are the presets 'WMGM'; the others are small.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#              widths                        norm      head        parameters (6 -> 9 channels; 2 -> 3 for the small)
GENERATORS = {
    "WMGM":     ((64, 128, 256, 512, 1024), "batch",  "tanh"),   # 36,471,600, as released
    "small-64": ((32, 64, 128, 256),        "group",  "linear"), #  2.3M
    "small-32": ((24, 48, 96),              "group",  "linear"), #  0.3M
}  # fmt: skip
#              width  blocks  norm     dropout               parameters (3 channels; 2 for the small)
DISCRIMINATORS = {
    "WMGM":     (64,  5,      "batch", 0.5),                     # 42,632,257, as released
    "small-64": (24,  4,      "group", 0.0),                     #  1.5M
    "small-32": (16,  3,      "group", 0.0),                     #  0.2M
}  # fmt: skip
SLOPE = 0.1


def _norm(kind: str, width: int) -> nn.Module:
    """'batch', or 'group' with as many of eight groups as divide the width: it treats every image alone."""
    return nn.BatchNorm2d(width) if kind == "batch" else nn.GroupNorm(math.gcd(8, width), width)


class Block(nn.Module):
    """Two 3x3 convolutions, the first to the mean of both widths, beside a 1x1 shortcut."""

    def __init__(self, before: int, after: int, norm: str):
        super().__init__()
        middle = (before + after) // 2
        self.layers = nn.Sequential(
            nn.Conv2d(before, middle, 3, padding=1),
            _norm(norm, middle),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(middle, after, 3, padding=1),
            _norm(norm, after),
        )
        self.shortcut = nn.Conv2d(before, after, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.layers(x) + self.shortcut(x), SLOPE)


class Gate(nn.Module):
    """An attention gate: the skip x times a map in (0, 1) made of it and of the decoder's g (arXiv 1804.03999)."""

    def __init__(self, width: int, norm: str):
        super().__init__()
        inner = width // 2
        self.of_skip = nn.Sequential(nn.Conv2d(width, inner, 1), _norm(norm, inner))
        self.of_decoder = nn.Sequential(nn.Conv2d(width, inner, 1), _norm(norm, inner))
        self.map = nn.Sequential(nn.Conv2d(inner, 1, 1), _norm(norm, 1))

    def forward(self, g: Tensor, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.map(F.relu(self.of_decoder(g) + self.of_skip(x))))


class AttentionUNet(nn.Module):
    """From (N, inputs, h, h) to (N, outputs, h, h) in one pass; h a multiple of 2^(levels - 1), one level a width.

    head 'tanh' bounds the result by 1, 'linear' leaves it free. Raises ValueError for a side that cannot be halved
    often enough.
    """

    def __init__(self, inputs: int, outputs: int, widths: list[int], norm: str, head: str):
        super().__init__()
        self.bounded = head == "tanh"
        self.encoder = nn.ModuleList(Block(b, a, norm) for b, a in zip([inputs, *widths[:-1]], widths))
        deeper = [widths[-1], *(2 * width for width in widths[-2:0:-1])]  # what each level of the decoder receives
        self.decoder = nn.ModuleList(Block(b, a, norm) for b, a in zip(deeper, widths[-2::-1]))
        self.gates = nn.ModuleList(Gate(width, norm) for width in widths[-2::-1])
        self.last = Block(2 * widths[0], widths[0] // 2, norm)
        self.head = nn.Conv2d(widths[0] // 2, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        factor = 2 ** (len(self.encoder) - 1)
        if x.shape[-1] % factor:
            raise ValueError(
                f"a generator of {len(self.encoder)} widths cannot divide a side of {x.shape[-1]}; "
                f"allowed: multiples of {factor}"
            )
        skips = []
        for level, block in enumerate(self.encoder):
            x = block(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for block, gate in zip(self.decoder, self.gates):
            x = block(F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False))
            x = torch.cat([gate(x, skips.pop()), x], 1)
        x = self.head(self.last(x))
        return torch.tanh(x) if self.bounded else x


class Halving(nn.Module):
    """Two 3x3 convolutions, the second to half the side and twice the width, beside a strided 1x1 shortcut."""

    def __init__(self, width: int, norm: str):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            _norm(norm, width),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            _norm(norm, 2 * width),
        )
        self.shortcut = nn.Sequential(nn.Conv2d(width, 2 * width, 1, bias=False), _norm(norm, 2 * width))

    def forward(self, x: Tensor) -> Tensor:
        # Slicing is the stride: torch 2.13's strided 1x1 convolution writes past its buffers on processors with AVX2
        # alone, for channels-last images of fewer than 8 channels.
        return F.leaky_relu(self.layers(x) + self.shortcut(x[..., ::2, ::2]), SLOPE)


class Discriminator(nn.Module):
    """Images (N, inputs, h, h) of any side -> one logit each (N,).

    `uniform` (N, features), numbers in [0, 1), decides what dropout takes out; without it nothing is. They are given,
    not drawn here: a resumed training run must see the same ones.
    """

    def __init__(self, inputs: int, width: int, blocks: int, norm: str, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.stem = nn.Sequential(nn.Conv2d(inputs, width, 3, padding=1), _norm(norm, width), nn.LeakyReLU(SLOPE))
        self.blocks = nn.Sequential(*(Halving(width * 2**i, norm) for i in range(blocks)))
        wide = width * 2**blocks
        self.features = wide // 2
        self.hidden, self.logit = nn.Linear(wide, wide // 2), nn.Linear(wide // 2, 1)

    def forward(self, x: Tensor, uniform: Tensor | None = None) -> Tensor:
        x = self.blocks(self.stem(x)).mean((2, 3))
        x = F.leaky_relu(self.hidden(x), SLOPE)
        if uniform is not None and self.dropout:
            x = x * (uniform >= self.dropout) / (1 - self.dropout)
        return self.logit(x).squeeze(1)
