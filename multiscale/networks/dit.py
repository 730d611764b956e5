"""The diffusion transformer with adaLN-zero (Peebles & Xie, arXiv 2212.09748), for any grid of latents.

Shapes: N images, T = (h/p)^2 tokens, D width. Positions are sine codes of *normalised* coordinates, so one network
serves several resolutions.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#                depth  width  heads  patch   parameters with 1000 classes and 4 latent channels
PRESETS = {
    "DiT-S/2":   (12,    384,    6,     2),   # 32.9M
    "DiT-B/2":   (12,    768,   12,     2),   # 130.3M
    "DiT-L/2":   (24,   1024,   16,     2),   # 457.0M
    "DiT-XL/2":  (28,   1152,   16,     2),   # 674.8M
    "MSF-0":     (18,   1152,   16,     2),   # 435.8M  (published 435.9M)
    "MSF-1":     (11,   1280,   16,     2),   # 331.2M  (published 331.2M; the paper prints depth 10)
}  # fmt: skip


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (N, T, D) with shift, scale (N, D) for every token."""
    return torch.addcmul(shift.unsqueeze(1), x, 1 + scale.unsqueeze(1))


def gated(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """x + gate * y with gate (N, D)."""
    return torch.addcmul(x, gate.unsqueeze(1), y)


class TimestepEmbedder(nn.Module):
    """Time in [0, 1] -> (N, D): sines of 1000 t, then a two-layer MLP."""

    def __init__(self, width: int, frequencies: int = 256):
        super().__init__()
        rates = torch.exp(-math.log(10000) * torch.arange(frequencies // 2) / (frequencies // 2))
        self.register_buffer("rates", 1000 * rates, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        phase = t.float()[:, None] * self.rates
        return self.mlp(torch.cat([phase.cos(), phase.sin()], dim=1))


class LabelEmbedder(nn.Embedding):
    """Class labels 0..classes-1 -> (N, D); the label `classes` stands for 'no class' (guidance)."""

    def __init__(self, classes: int, width: int):
        super().__init__(classes + 1, width)
        self.null = classes


class Attention(nn.Module):
    """Multi-head self-attention over (N, T, D) through torch's fused kernel."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        N, T, D = x.shape
        q, k, v = self.qkv(x).view(N, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(N, T, D))


class DiTBlock(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition; gates start at zero (adaLN-zero)."""

    def __init__(self, width: int, heads: int, mlp_ratio: float = 4):
        super().__init__()
        hidden = int(width * mlp_ratio)
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.modulation = nn.Linear(width, 6 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = self.modulation(condition).chunk(6, dim=1)
        x = gated(x, gate_a, self.attention(modulate(self.norm(x), shift_a, scale_a)))
        return gated(x, gate_m, self.mlp(modulate(self.norm(x), shift_m, scale_m)))


class FinalLayer(nn.Module):
    """Modulated norm and a zero-initialised linear layer to patches."""

    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(width, 2 * width)
        self.linear = nn.Linear(width, outputs)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.modulation(condition).chunk(2, dim=1)
        return self.linear(modulate(self.norm(x), shift, scale))


@lru_cache(maxsize=16)
def position_code(grid: int, width: int) -> Tensor:
    """Sine codes (T, D) of the token centres on the unit square, row-major.

    Coordinates are scaled so that a 16x16 grid has the spacing 1 of the DiT code: the code of a place does not
    depend on the number of tokens.
    """
    centres = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid * 16
    rates = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    phase = centres[:, None] * rates
    code = torch.cat([phase.sin(), phase.cos()], dim=1)  # (grid, D/2)
    rows, columns = code[:, None].expand(grid, grid, -1), code[None].expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=2).reshape(grid * grid, width).float()


class DiT(nn.Module):
    """A class-conditional transformer from (x (N, inputs, h, h), t (N,), labels (N,)) to (N, outputs, h, h).

    h must be a multiple of the patch. `inputs` exceeds `outputs` where a prior is concatenated to the noisy state.
    """

    def __init__(self, inputs: int, outputs: int, depth: int, width: int, heads: int, patch: int, classes: int):
        super().__init__()
        self.patch, self.outputs, self.classes = patch, outputs, classes
        self.patches = nn.Linear(inputs * patch**2, width)
        self.time = TimestepEmbedder(width)
        self.label = LabelEmbedder(classes, width)
        self.blocks = nn.ModuleList(DiTBlock(width, heads) for _ in range(depth))
        self.final = FinalLayer(width, outputs * patch**2)
        self._initialise()

    @property
    def null_label(self) -> int:
        """The label that stands for 'no class'."""
        return self.label.null

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for embedding in (self.label, self.time.mlp[0], self.time.mlp[2]):
            nn.init.normal_(embedding.weight, std=0.02)
        for layer in [block.modulation for block in self.blocks] + [self.final.modulation, self.final.linear]:
            nn.init.zeros_(layer.weight)

    def forward(
        self, x: Tensor, t: Tensor, labels: Tensor, block: int | None = None, stop: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The output; with `block`, the pair of it and the tokens (N, T, D) after that block, counted from zero.

        With `stop`, those tokens alone: the later blocks are not run. There is no second way to them, because FSDP
        gathers a network's weights where `forward` is called.
        """
        grid, depth = x.shape[-1] // self.patch, len(self.blocks)
        x, condition = self._enter(x, t, labels)
        between = depth if block is None else block + 1
        tokens = x = self._run(x, condition, 0, between)
        if stop:
            return tokens
        x = self.final(self._run(x, condition, between, depth), condition)  # (N, T, outputs p^2)
        x = F.pixel_shuffle(x.transpose(1, 2).unflatten(2, (grid, grid)), self.patch)
        return x if block is None else (x, tokens)

    def _enter(self, x: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        grid = x.shape[-1] // self.patch
        x = F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)  # (N, T, inputs p^2)
        x = self.patches(x) + position_code(grid, self.patches.out_features).to(x.device)
        return x, F.silu(self.time(t) + self.label(labels))  # the condition (N, D)

    def _run(self, x: Tensor, condition: Tensor, first: int, last: int) -> Tensor:
        for block in self.blocks[first:last]:
            x = block(x, condition)
        return x
