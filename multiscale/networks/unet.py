"""Flexi-UNet: one UNet that images of several sides enter and leave at their own level (arXiv 2603.08709, section 4).

Level l works at the side R / 2^l with c_l channels. A small image enters the encoder at its level and leaves the
decoder at its own, or at a larger one where the step enlarges it: the levels above are not run at all. One entry level
is the plain UNet of ADM (arXiv 2105.05233). Shapes: images (N, C, h, h), activations channels-last where they can be.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multiscale.core.resize import bilinear_to
from multiscale.networks.dit import LabelEmbedder, TimestepEmbedder

#              side  width  multipliers         blocks  attention  heads  groups   parameters (RGB, all levels entered)
PRESETS = {
    "SSD-256": (256,  128,  (1, 1, 2, 2, 4, 4),  2,     (16, 8),    4,    32),   # 123.6M  (published 124.3M: with
    "SSD-128": (128,  128,  (1, 1, 2, 3, 4),     2,     (16, 8),    4,    32),   #  94.6M   95.2M   the top block)
    "SSD-64":  ( 64,  128,  (1, 2, 3, 4),        2,     (16, 8),    4,    32),   #  91.6M   92.3M
    "SSD-32":  ( 32,  128,  (1, 2, 4),           2,     (16, 8),    4,    32),   #  66.5M
    "small-64": (64,   32,  (1, 2, 2, 2),        1,     (8,),       4,     8),   #   1.6M
    "small-32": (32,   32,  (1, 2, 2),           1,     (8,),       4,     8),   #   1.2M
    "wide-32": ( 32,   64,  (1, 2, 2),           1,     (8,),       4,     8),   #   4.6M
    "tiny-32": ( 32,   32,  (1, 2),              1,     (),         4,     8),   #   0.7M
}  # fmt: skip


class ResidualBlock(nn.Module):
    """Norm, SiLU and convolution twice; the condition scales and shifts the second norm. Starts as its shortcut."""

    def __init__(self, before: int, after: int, condition: int, groups: int):
        super().__init__()
        self.norm_in = nn.GroupNorm(groups, before)
        self.conv_in = nn.Conv2d(before, after, 3, padding=1)
        self.modulation = nn.Linear(condition, 2 * after)
        self.norm_out = nn.GroupNorm(groups, after)
        self.conv_out = _zeroed(nn.Conv2d(after, after, 3, padding=1))
        self.shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        h = self.conv_in(F.silu(self.norm_in(x)))
        scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm_out(h), 1 + scale)
        return self.shortcut(x) + self.conv_out(F.silu(h))


class SelfAttention(nn.Module):
    """Multi-head self-attention over the h^2 places of x (N, C, h, h), added to x. Starts as the identity."""

    def __init__(self, channels: int, heads: int, groups: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = _zeroed(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        N, C, h, w = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 1).reshape(N, h * w, C)  # a view where x is channels-last
        # The channels are ordered head, (q, k, v), width: as in ADM's checkpoints.
        q, k, v = self.qkv(tokens).view(N, h * w, self.heads, 3, C // self.heads).permute(3, 0, 2, 1, 4)
        tokens = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(N, h * w, C))
        return x + tokens.view(N, h, w, C).permute(0, 3, 1, 2)


class Block(nn.Module):
    """A residual block on `before` channels and a skip of `skip` more, then self-attention if it has heads."""

    def __init__(self, before: int, skip: int, after: int, condition: int, heads: int, groups: int):
        super().__init__()
        self.skip = skip
        self.residual = ResidualBlock(before + skip, after, condition, groups)
        self.attention = SelfAttention(after, heads, groups) if heads else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor, skips: list[Tensor] | None = None) -> Tensor:
        if self.skip:  # where the encoder has not been, the skip is zero
            x = torch.cat([x, skips.pop()], 1) if skips else F.pad(x, (0, 0, 0, 0, 0, self.skip))
        return self.attention(self.residual(x, condition))


def _zeroed(layer: nn.Module) -> nn.Module:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class FlexiUNet(nn.Module):
    """From (x (N, C, h, h), t (N,), labels (N,) or None, out_side) to (N, C, out_side, out_side).

    side R is the full one; the c_l are width times the multipliers; `attention` names the level sides that have it
    (the middle always does). Sides R / 2^l enter and leave at level l, for l below `levels`; with one level every
    side runs the whole network. classes 0 makes it unconditional; the label `classes` stands for 'no class'.

    Each level has `blocks` blocks in the encoder, one more in the decoder; that last one of the top level belongs to
    `top_block`: the published plain UNet runs it, the published Flexi-UNet has it and never does.

    Raises ValueError for sides that cannot be halved often enough, more entry levels than there are levels, and
    widths that the groups or heads do not divide.
    """

    def __init__(
        self,
        channels: int,
        side: int,
        width: int,
        multipliers: tuple[int, ...],
        blocks: int,
        attention: tuple[int, ...],
        heads: int,
        groups: int,
        levels: int,
        classes: int = 0,
        top_block: bool = False,
    ):
        super().__init__()
        self.levels, self.blocks, self.depth = levels, blocks, len(multipliers)
        self.sides = [side >> level for level in range(levels)]  # that enter and leave at a level of their own
        self.widths = widths = [width * multiplier for multiplier in multipliers]
        self._check(heads, groups)
        stem, condition, last = widths[0], 4 * width, self.depth - 1
        self.entering = entering = [stem, *widths[:-1]]  # channels that a level's encoder receives
        self.top_block = top_block
        self.time = TimestepEmbedder(condition, width)
        self.label = LabelEmbedder(classes, condition) if classes else None

        def block(level: int, before: int, skip: int = 0, attend: bool | None = None) -> Block:
            attend = side >> level in attention if attend is None else attend
            return Block(before, skip, widths[level], condition, heads if attend else 0, groups)

        self.stem = nn.Conv2d(channels, stem, 3, padding=1)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        for level in range(self.depth):
            here, deeper = widths[level], widths[min(level + 1, last)]
            self.encoder.append(nn.ModuleList(block(level, here if i else entering[level]) for i in range(blocks)))
            joined = [block(level, here if i else deeper, here) for i in range(blocks)]
            if level or top_block:
                joined.append(block(level, here, entering[level]))
            self.decoder.append(nn.ModuleList(joined))
        self.down = nn.ModuleList(nn.Conv2d(w, w, 3, stride=2, padding=1) for w in widths[:-1])
        self.up = nn.ModuleList(nn.Conv2d(w, w, 3, padding=1) for w in widths[1:])  # up[l - 1] leaves level l
        self.middle = nn.ModuleList(block(last, widths[last], attend=attend) for attend in (True, False))
        # Levels of one width share an adapter; a width equal to the stem's needs none.
        self.adapt_in = nn.ModuleDict({str(w): nn.Conv2d(stem, w, 1) for w in entering[1:levels] if w != stem})
        self.adapt_out = nn.ModuleDict({str(w): nn.Conv2d(w, stem, 1) for w in widths[1:levels] if w != stem})
        self.norm = nn.GroupNorm(groups, stem)
        self.head = _zeroed(nn.Conv2d(stem, channels, 3, padding=1))

    def _check(self, heads: int, groups: int) -> None:
        if not 1 <= self.levels <= self.depth:
            raise ValueError(f"{self.levels} levels of sides in a UNet of {self.depth}; allowed: 1 to {self.depth}")
        self._check_divides(self.sides[0])
        for width in self.widths:
            if width % groups or width % heads:
                raise ValueError(f"a width of {width}; allowed: multiples of groups ({groups}) and heads ({heads})")

    def _check_divides(self, side: int) -> None:
        factor = 2 ** (self.depth - 1)
        if side % factor:
            raise ValueError(
                f"a UNet of {self.depth} levels cannot divide a side of {side}; allowed: multiples of {factor}"
            )

    @property
    def null_label(self) -> int | None:
        """The label that stands for 'no class'; None where the network knows no classes."""
        return self.label.null if self.label else None

    def level_of(self, side: int) -> int:
        """The level at which images of a side enter and leave. Raises ValueError for a side it cannot take."""
        if self.levels == 1:
            self._check_divides(side)
            return 0
        if side not in self.sides:
            raise ValueError(f"a side of {side} has no level in the UNet; allowed: {', '.join(map(str, self.sides))}")
        return self.sides.index(side)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None, out_side: int) -> Tensor:
        start, end = self.level_of(x.shape[-1]), self.level_of(out_side)
        if x.shape[-1] > out_side:
            raise ValueError(
                f"from side {x.shape[-1]} to the smaller {out_side}; allowed: the same side or a larger one"
            )
        if end == 0:  # into the top level the image is enlarged first, and takes the full path
            x, start = bilinear_to(x, out_side), 0
        condition = self.time(t / 1000)  # the sines of t itself: the embedder takes its time from [0, 1]
        if self.label is not None:
            condition = condition + self.label(labels)
        condition = F.silu(condition)

        h = _adapted(self.adapt_in, self.entering[start], self.stem(x))
        skips = [h] if self.top_block and self.levels == 1 else []
        for level in range(start, self.depth):
            for block in self.encoder[level]:
                h = block(h, condition)
                skips.append(h)
            if level < self.depth - 1:
                h = self.down[level](h)
                skips.append(h)
        for block in self.middle:
            h = block(h, condition)
        for level in reversed(range(end, self.depth)):
            for block in self.decoder[level][: self.blocks]:
                h = block(h, condition, skips)
            if level > end:
                h = self.decoder[level][-1](h, condition, skips)
                h = self.up[level - 1](F.interpolate(h, scale_factor=2.0, mode="nearest"))
        if skips:  # the stem's own, in a plain UNet with a top block
            h = self.decoder[0][-1](h, condition, skips)
        h = _adapted(self.adapt_out, self.widths[end], h)
        return self.head(F.silu(self.norm(h)))


def _adapted(adapters: nn.ModuleDict, width: int, h: Tensor) -> Tensor:
    return adapters[str(width)](h) if str(width) in adapters else h
