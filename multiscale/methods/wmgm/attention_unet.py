"""WMGM's adversarial pair: an attention-gated U-Net that makes details, and a convolutional discriminator of images.

Layers as in the released code of arXiv 2411.09356, whose sizes are the presets 'WMGM'; the others are small.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from multiscale.core.settings import Above0, Few, Positive, Section, Share, preset
from multiscale.networks.group_norm import GroupNorm

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
Norm = Literal["batch", "group"]
SLOPE = 0.1


class GeneratorNetwork(Section):
    """The generator of details; `preset: NAME` stands for all of it."""

    widths: Annotated[list[Positive], Field(min_length=2, max_length=13)]
    """channels of each level; each level halves the resolution"""
    norm: Norm
    """batch, or group: every image is normalised alone"""
    head: Literal["tanh", "linear"]
    """tanh bounds the details by 1, as in the released code"""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return preset(value, GENERATORS, ("widths", "norm", "head"))

    @property
    def factor(self) -> int:
        """What must divide a resolution."""
        return 1 << (len(self.widths) - 1)

    def build(self, inputs: int, outputs: int) -> AttentionUNet:
        """The network, its weights drawn anew."""
        return AttentionUNet(inputs, outputs, self.widths, self.norm, self.head)


class DiscriminatorNetwork(Section):
    """The generator's adversary; `preset: NAME` stands for its size."""

    width: Positive
    """channels of the first layer; each block doubles them"""
    blocks: Few
    """each halves the resolution"""
    norm: Norm
    """batch, or group: every image is normalised alone"""
    dropout: Share
    """share of the features before the logit"""
    conditional: bool = True
    """whether it sees the coarse image too; the released one does not"""
    lr_factor: Above0 = 1.0
    """of the generator's learning rate; the released code's is 0.1"""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return preset(value, DISCRIMINATORS, ("width", "blocks", "norm", "dropout"))

    def build(self, channels: int) -> Discriminator:
        """The network for images of so many channels, its weights drawn anew."""
        inputs = channels * (2 if self.conditional else 1)
        return Discriminator(inputs, self.width, self.blocks, self.norm, self.dropout)


def _norm(kind: Norm, width: int) -> nn.Module:
    """'batch', or 'group' with as many of eight groups as divide the width."""
    return nn.BatchNorm2d(width) if kind == "batch" else GroupNorm(math.gcd(8, width), width)


class Block(nn.Module):
    """Two 3x3 convolutions, the first to the mean of both widths, beside a 1x1 shortcut."""

    def __init__(self, before: int, after: int, norm: Norm):
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

    def __init__(self, width: int, norm: Norm):
        super().__init__()
        inner = width // 2
        self.of_skip = nn.Sequential(nn.Conv2d(width, inner, 1), _norm(norm, inner))
        self.of_decoder = nn.Sequential(nn.Conv2d(width, inner, 1), _norm(norm, inner))
        self.map = nn.Sequential(nn.Conv2d(inner, 1, 1), _norm(norm, 1))

    def forward(self, g: Tensor, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.map(F.relu(self.of_decoder(g) + self.of_skip(x))))


class AttentionUNet(nn.Module):
    """From (N, inputs, h, h) to (N, outputs, h, h) in one pass; h is a multiple of 2^(levels - 1), one level per width.

    head 'tanh' bounds the result by 1, 'linear' does not. Raises ValueError for a resolution that cannot be halved
    often enough.
    """

    def __init__(self, inputs: int, outputs: int, widths: list[int], norm: Norm, head: str):
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
                f"a generator of {len(self.encoder)} widths cannot divide a resolution of {x.shape[-1]}; "
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
    """Two 3x3 convolutions, the second to half the resolution and twice the width, beside a strided 1x1 shortcut."""

    def __init__(self, width: int, norm: Norm):
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
        # Slicing is the stride: torch 2.13's strided 1x1 convolution writes past its buffers for channels-last images
        # of fewer than 8 channels on processors that have no more than AVX2.
        return F.leaky_relu(self.layers(x) + self.shortcut(x[..., ::2, ::2]), SLOPE)


class Discriminator(nn.Module):
    """Images (N, inputs, h, h) of any resolution -> one logit each (N,).

    `uniform` (N, features), numbers in [0, 1), decides which features dropout zeroes; without it there is no dropout.
    The caller draws them, because a resumed run must see the same ones.
    """

    def __init__(self, inputs: int, width: int, blocks: int, norm: Norm, dropout: float):
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
        logits: Tensor = self.logit(x)
        return logits.squeeze(1)
