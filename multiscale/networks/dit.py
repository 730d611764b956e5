"""The diffusion transformer (DiT) with adaLN-zero (Peebles & Xie, arXiv 2212.09748), for latents of any resolution.

Shapes: N images, T = (h/p)^2 tokens, D width. Positions are sine codes of *normalised* coordinates, so that one
network serves several resolutions.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from multiscale.core.settings import Bad, Few, Positive, Section, preset
from multiscale.networks.attention import attention
from multiscale.networks.recompute import Recomputing

#                depth  width  heads  patch   parameters with 1000 classes and 4 latent channels
PRESETS = {
    "DiT-S/2":   (12,    384,    6,     2),   # 32.9M
    "DiT-B/2":   (12,    768,   12,     2),   # 130.3M
    "DiT-L/2":   (24,   1024,   16,     2),   # 457.0M
    "DiT-XL/2":  (28,   1152,   16,     2),   # 674.8M
    "MSF-0":     (18,   1152,   16,     2),   # 435.8M  (published 435.9M)
    "MSF-1":     (11,   1280,   16,     2),   # 331.2M  (published 331.2M; the paper prints depth 10)
}  # fmt: skip


class DiTNetwork(Section):
    """The size of a DiT; `preset: NAME` stands for all four numbers."""

    depth: Few
    """transformer blocks"""
    width: Positive
    """channels of a token"""
    heads: Positive
    """attention heads"""
    patch: Positive
    """edge of a token, in latent pixels"""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return preset(value, PRESETS, ("depth", "width", "heads", "patch"))

    @model_validator(mode="after")
    def _check(self) -> DiTNetwork:
        if self.width % self.heads or self.width % 4:
            raise Bad("width", self.width, f"a multiple of heads ({self.heads}) and of 4")
        return self

    def build(self, inputs: int, outputs: int, classes: int) -> DiT:
        """The network with random weights, for `inputs` and `outputs` channels."""
        return DiT(inputs, outputs, self.depth, self.width, self.heads, self.patch, classes)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (N, T, D) with shift, scale (N, D) for every token."""
    return torch.addcmul(shift.unsqueeze(1), x, 1 + scale.unsqueeze(1))


def gated(x: Tensor, gate: Tensor, y: Tensor) -> Tensor:
    """x + gate * y with gate (N, D)."""
    return torch.addcmul(x, gate.unsqueeze(1), y)


class TimestepEmbedder(nn.Module):
    """Time in [0, 1] -> (N, D): sines and cosines of 1000 t, then a two-layer MLP."""

    rates: Tensor

    def __init__(self, width: int, frequencies: int = 256):
        super().__init__()
        rates = torch.exp(-math.log(10000) * torch.arange(frequencies // 2) / (frequencies // 2))
        self.register_buffer("rates", 1000 * rates, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        phase = t.float()[:, None] * self.rates
        embedding: Tensor = self.mlp(torch.cat([phase.cos(), phase.sin()], dim=1))
        return embedding


class LabelEmbedder(nn.Embedding):
    """Class labels 0..classes-1 -> (N, D); the label `classes` stands for 'no class' (for guidance)."""

    def __init__(self, classes: int, width: int):
        super().__init__(classes + 1, width)


class Attention(nn.Module):
    """Multi-head self-attention over (N, T, D)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        N, T, D = x.shape
        q, k, v = self.qkv(x).view(N, T, 3, self.heads, D // self.heads).permute(2, 0, 3, 1, 4)
        mixed: Tensor = self.proj(attention(q, k, v).transpose(1, 2).reshape(N, T, D))
        return mixed


class DiTBlock(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition; the gates start at zero (adaLN-zero)."""

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
    """Modulated norm and a linear layer to patches, which starts at zero."""

    def __init__(self, width: int, outputs: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(width, 2 * width)
        self.linear = nn.Linear(width, outputs)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.modulation(condition).chunk(2, dim=1)
        patches: Tensor = self.linear(modulate(self.norm(x), shift, scale))
        return patches


@lru_cache(maxsize=32)
def position_code(grid: int, width: int, device: torch.device | str = "cpu") -> Tensor:
    """Sine codes (T, D) of the token centres on the unit square, row-major; made once for each device.

    Coordinates are scaled so that neighbours on a 16x16 grid are 1 apart, as in DiT's code. The code of a place does
    not depend on the number of tokens.
    """
    centres = (torch.arange(grid, dtype=torch.float64) + 0.5) / grid * 16
    rates = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    phase = centres[:, None] * rates
    code = torch.cat([phase.sin(), phase.cos()], dim=1)  # (grid, D/2)
    rows, columns = code[:, None].expand(grid, grid, -1), code[None].expand(grid, grid, -1)
    return torch.cat([rows, columns], dim=2).reshape(grid * grid, width).float().to(device)


class DiT(Recomputing):
    """A class-conditional transformer from (x (N, inputs, h, h), t (N,), labels (N,)) to (N, outputs, h, h).

    h must be a multiple of the patch. `inputs` exceeds `outputs` where a condition is concatenated to the noisy state.
    """

    # For `compile_in_place`: without the cache around it, which torch's compiler looks through.
    constants = (position_code.__wrapped__,)

    def __init__(self, inputs: int, outputs: int, depth: int, width: int, heads: int, patch: int, classes: int):
        super().__init__()
        self.patch, self.outputs, self.classes = patch, outputs, classes
        self.patches = nn.Linear(inputs * patch**2, width)
        self.time = TimestepEmbedder(width)
        self.label = LabelEmbedder(classes, width)
        self.blocks = nn.ModuleList(DiTBlock(width, heads) for _ in range(depth))
        self.final = FinalLayer(width, outputs * patch**2)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        for embedding in (self.label, *self.time.mlp):
            if isinstance(embedding, nn.Embedding | nn.Linear):
                nn.init.normal_(embedding.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, DiTBlock | FinalLayer):
                nn.init.zeros_(module.modulation.weight)
        nn.init.zeros_(self.final.linear.weight)

    def forward(
        self, x: Tensor, t: Tensor, labels: Tensor, *, block: int | None = None, stop: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The output; with `block`, also the tokens (N, T, D) after that block, counted from zero.

        With `stop`, these tokens alone: the later blocks do not run. This is an argument rather than a method,
        because FSDP gathers a network's weights only where `forward` is called.
        """
        grid = x.shape[-1] // self.patch
        x = F.pixel_unshuffle(x, self.patch).flatten(2).transpose(1, 2)  # (N, T, inputs p^2)
        tokens = x = self.patches(x) + position_code(grid, self.patches.out_features, x.device)
        condition = F.silu(self.time(t) + self.label(labels))  # (N, D)
        for index, layer in enumerate(self.blocks):
            x = self.through(layer, x, condition)
            if index == block:
                tokens = x
                if stop:
                    return tokens
        x = self.final(x, condition)  # (N, T, outputs p^2)
        x = F.pixel_shuffle(x.transpose(1, 2).unflatten(2, (grid, grid)), self.patch)
        return x if block is None else (x, tokens)
