"""Flexi-UNet: one UNet for several resolutions, each with its own entry and exit level (arXiv 2603.08709).

Level l works at the resolution R / 2^l with c_l channels (section 4). A small image enters the encoder at its own level
and leaves the decoder there, or at a higher level if the step enlarges it. The levels above do not run. With one entry
level this is the plain UNet of ADM (arXiv 2105.05233). Images have the shape (N, C, h, h).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, TypeVar, cast

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from multiscale.core.resize import bilinear_to
from multiscale.core.settings import Bad, Few, Positive, Section, allowed_of, preset
from multiscale.networks.attention import attention
from multiscale.networks.dit import LabelEmbedder, TimestepEmbedder
from multiscale.networks.group_norm import GroupNorm
from multiscale.networks.recompute import Recomputing

#            width  multipliers         blocks  attention  heads  groups   parameters (RGB, all levels entered)
PRESETS = {  # by the resolution of the images
    "SSD-256":  (128,  (1, 1, 2, 2, 4, 4),  2,     (16, 8),    4,    32),   # 123.6M  (published 124.3M: with
    "SSD-128":  (128,  (1, 1, 2, 3, 4),     2,     (16, 8),    4,    32),   #  94.6M   95.2M   the top block)
    "SSD-64":   (128,  (1, 2, 3, 4),        2,     (16, 8),    4,    32),   #  91.6M   92.3M
    "small-64": ( 32,  (1, 2, 2, 2),        1,     (8,),       4,     8),   #   1.6M
    "small-32": ( 32,  (1, 2, 2),           1,     (8,),       4,     8),   #   1.2M
    "tiny-32":  ( 32,  (1, 2),              1,     (),         4,     8),   #   0.7M
}  # fmt: skip

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


class UNetNetwork(Section):
    """The size of a UNet, or `preset: NAME`."""

    width: Positive
    """base number of channels"""
    multipliers: Annotated[list[Positive], Field(min_length=1)]
    """of the width, one a level; each level halves the resolution"""
    blocks: Few
    """residual blocks a level"""
    attention: list[Positive]
    """resolutions with self-attention"""
    heads: Positive
    """attention heads"""
    groups: Positive
    """of group normalisation"""
    top_block: bool = False
    """last block of the published plain UNet, which Flexi-UNet never runs"""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return preset(value, PRESETS, ("width", "multipliers", "blocks", "attention", "heads", "groups"))

    def build(self, channels: int, resolution: int, levels: int = 1, classes: int = 0) -> FlexiUNet:
        """The network with random weights. Raises ValueError as FlexiUNet does."""
        return FlexiUNet(channels, resolution, self, levels, classes)

    def entries(self, resolution: int, levels: int = 1) -> list[int]:
        """The resolutions of the entry levels. Raises ValueError as FlexiUNet does."""
        depth, widths = len(self.multipliers), [self.width * multiplier for multiplier in self.multipliers]
        if not 1 <= levels <= depth:
            raise ValueError(f"{levels} levels of resolutions in a UNet of {depth}; allowed: 1 to {depth}")
        self._check_divides(resolution)
        for width in widths:
            if width % self.groups or width % self.heads:
                allowed = f"multiples of groups ({self.groups}) and heads ({self.heads})"
                raise ValueError(f"a width of {width}; allowed: {allowed}")
        return [resolution >> level for level in range(levels)]

    def level_of(self, resolution: int, entries: list[int]) -> int:
        """The entry level of a resolution. Raises ValueError if the network cannot process it."""
        if len(entries) == 1:
            self._check_divides(resolution)
            return 0
        if resolution not in entries:
            allowed = ", ".join(map(str, entries))
            raise ValueError(f"a resolution of {resolution} has no level in the UNet; allowed: {allowed}")
        return entries.index(resolution)

    def _check_divides(self, resolution: int) -> None:
        depth = len(self.multipliers)
        factor = 2 ** (depth - 1)
        if resolution % factor:
            raise ValueError(
                f"a UNet of {depth} levels cannot divide a resolution of {resolution}; allowed: multiples of {factor}"
            )

    def check(self, key: str, resolution: int) -> None:
        """Raises Bad, naming `key`, unless a plain UNet of this size can process the resolution."""
        try:
            self.entries(resolution)
        except ValueError as error:
            raise Bad(f"{key}.multipliers", self.multipliers, allowed_of(error)) from None


class ResidualBlock(nn.Module):
    """Norm, SiLU and convolution, twice; the condition modulates the second norm. Starts as its shortcut."""

    def __init__(self, before: int, after: int, condition: int, groups: int):
        super().__init__()
        self.norm_in = GroupNorm(groups, before)
        self.conv_in = nn.Conv2d(before, after, 3, padding=1)
        self.modulation = nn.Linear(condition, 2 * after)
        self.norm_out = GroupNorm(groups, after)
        self.conv_out = _zeroed(nn.Conv2d(after, after, 3, padding=1))
        self.shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm_out(h), 1 + scale)
        x = self.shortcut(x) + self.conv_out(F.silu(h))
        return x


class SelfAttention(nn.Module):
    """Multi-head self-attention over the h^2 pixels of x (N, C, h, h), added to x. Starts as the identity."""

    def __init__(self, channels: int, heads: int, groups: int):
        super().__init__()
        self.heads = heads
        self.norm = GroupNorm(groups, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = _zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        N, C, h, w = x.shape
        tokens: Tensor = self.norm(x).permute(0, 2, 3, 1).reshape(N, h * w, C)  # a view where x is channels-last
        # Channels are ordered (head, qkv, width), as in ADM's checkpoints.
        q, k, v = self.qkv(tokens).view(N, h * w, self.heads, 3, C // self.heads).permute(3, 0, 2, 1, 4)
        tokens = self.proj(attention(q, k, v).transpose(1, 2).reshape(N, h * w, C))
        return x + tokens.view(N, h, w, C).permute(0, 3, 1, 2)


class Block(Recomputing):
    """A residual block on `before` channels plus `skip` of a skip connection, then self-attention if heads > 0."""

    def __init__(self, before: int, skip: int, after: int, condition: int, heads: int, groups: int):
        super().__init__()
        self.skip = skip
        self.residual = ResidualBlock(before + skip, after, condition, groups)
        self.attention = SelfAttention(after, heads, groups) if heads else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor, skips: list[Tensor] | None = None) -> Tensor:
        if self.skip:  # zeros where the encoder did not run
            x = torch.cat([x, skips.pop()], 1) if skips else F.pad(x, (0, 0, 0, 0, 0, self.skip))
        x = self.through(self.residual, x, condition)
        x = self.through(self.attention, x)
        return x


def _zeroed(layer: Layer) -> Layer:
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


class FlexiUNet(nn.Module):
    """(x (N, C, h, h), t (N,), labels (N,), out_resolution) -> (N, C, out_resolution, out_resolution).

    R is the full `resolution`. Images of resolution R / 2^l enter and leave at level l < `levels`; with one level,
    every resolution runs the whole network. Without `out_resolution` images leave as they enter. With classes = 0 the
    network is unconditional and takes no labels; the label `classes` means 'no class'.

    Each level has `blocks` blocks in the encoder and one more in the decoder, which the top level has only with
    `top_block`: the published plain UNet runs it, the published Flexi-UNet never does. The middle always has attention.

    Raises ValueError for resolutions that cannot be halved often enough, for more entry levels than levels, and for
    widths that are not multiples of the groups and heads.
    """

    def __init__(self, channels: int, resolution: int, size: UNetNetwork, levels: int, classes: int = 0):
        super().__init__()
        self.size, self.levels, self.depth = size, levels, len(size.multipliers)
        self.resolutions = size.entries(resolution, levels)
        self.widths = widths = [size.width * multiplier for multiplier in size.multipliers]
        stem, condition, last = widths[0], 4 * size.width, self.depth - 1
        self.entering = entering = [stem, *widths[:-1]]  # input channels of each level's encoder
        self.time = TimestepEmbedder(condition, size.width)
        self.label = LabelEmbedder(classes, condition) if classes else None

        def block(level: int, before: int, skip: int = 0, attend: bool | None = None) -> Block:
            attend = resolution >> level in size.attention if attend is None else attend
            return Block(before, skip, widths[level], condition, size.heads if attend else 0, size.groups)

        self.stem = nn.Conv2d(channels, stem, 3, padding=1)
        encoder, decoder = [], []
        for level in range(self.depth):
            here, deeper = widths[level], widths[min(level + 1, last)]
            encoder.append(nn.ModuleList(block(level, here if i else entering[level]) for i in range(size.blocks)))
            joined = [block(level, here if i else deeper, here) for i in range(size.blocks)]
            if level or size.top_block:
                joined.append(block(level, here, entering[level]))
            decoder.append(nn.ModuleList(joined))
        self.encoder = cast("Sequence[Sequence[Block]]", nn.ModuleList(encoder))
        self.decoder = cast("Sequence[Sequence[Block]]", nn.ModuleList(decoder))
        self.down = nn.ModuleList(nn.Conv2d(w, w, 3, stride=2, padding=1) for w in widths[:-1])
        self.up = nn.ModuleList(nn.Conv2d(w, w, 3, padding=1) for w in widths[1:])  # up[l - 1] leaves level l
        self.middle = nn.ModuleList(block(last, widths[last], attend=attend) for attend in (True, False))
        # Levels of the same width share an adapter; levels as wide as the stem need none.
        self.adapt_in = nn.ModuleDict({str(w): nn.Conv2d(stem, w, 1) for w in entering[1:levels] if w != stem})
        self.adapt_out = nn.ModuleDict({str(w): nn.Conv2d(w, stem, 1) for w in widths[1:levels] if w != stem})
        self.norm = GroupNorm(size.groups, stem)
        self.head = _zeroed(nn.Conv2d(stem, channels, 3, padding=1))

    def level_of(self, resolution: int) -> int:
        """The entry level of a resolution. Raises ValueError if the network cannot process it."""
        return self.size.level_of(resolution, self.resolutions)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None, out_resolution: int | None = None) -> Tensor:
        out_resolution = out_resolution or x.shape[-1]
        start, end = self.level_of(x.shape[-1]), self.level_of(out_resolution)
        if x.shape[-1] > out_resolution:
            allowed = "the same resolution or a larger one"
            raise ValueError(f"from resolution {x.shape[-1]} to the smaller {out_resolution}; allowed: {allowed}")
        if end == 0:  # to the top level: the image is enlarged first and runs all levels, as in the released code
            x, start = bilinear_to(x, out_resolution), 0
        condition = self.time(t / 1000)  # the embedder multiplies by 1000
        if self.label is not None:
            condition = condition + self.label(labels)
        condition = F.silu(condition)

        h: Tensor = _adapted(self.adapt_in, self.entering[start], self.stem(x))
        skips = [h] if self.size.top_block and self.levels == 1 else []
        for level in range(start, self.depth):
            for block in self.encoder[level]:
                h = block(h, condition)
                skips.append(h)
            if level < self.depth - 1:
                h = self.down[level](h)
                skips.append(h)
        for middle in self.middle:
            h = middle(h, condition)
        for level in reversed(range(end, self.depth)):
            for block in self.decoder[level][: self.size.blocks]:
                h = block(h, condition, skips)
            if level > end:
                h = self.decoder[level][-1](h, condition, skips)
                h = self.up[level - 1](F.interpolate(h, scale_factor=2.0, mode="nearest"))
        if skips:  # the stem's, in a plain UNet with a top block
            h = self.decoder[0][-1](h, condition, skips)
        h = _adapted(self.adapt_out, self.widths[end], h)
        out: Tensor = self.head(F.silu(self.norm(h)))
        return out


def _adapted(adapters: nn.ModuleDict, width: int, h: Tensor) -> Tensor:
    """Applies the adapter of a width, if there is one."""
    if str(width) in adapters:
        h = adapters[str(width)](h)
    return h
