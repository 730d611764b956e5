"""FLUX.1: blocks of two streams, then blocks of one stream; a rectified flow that knows its guidance scale."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor

from multiscale.core.settings import Few, From0, Positive, preset
from multiscale.networks.published.network import Published, PublishedNetwork

PACK = 2  # edge of a token, in latent pixels: the pipeline packs, not the network

# transformer/config.json of black-forest-labs/FLUX.1-dev
#                two streams  one stream  heads    parameters
PRESETS = {
    "FLUX.1-dev": (19,          38,         24),   # 11,901,408,320
}  # fmt: skip


class Flux(Published):
    """`FluxTransformer2DModel`; T = (h/2)^2 tokens. Blocks are counted through both kinds.

    `guidance` is the scale that is embedded; a network without such an embedding does not see it.
    """

    folder = "transformer"
    # In a block of one stream, `proj_mlp` and `proj_out` are the MLP and the attention's output.
    adapted = (
        r"net\.(transformer_blocks\.\d+\.(attn\.(to_[qkv]|to_out\.0)|ff(_context)?\.net\.(0\.proj|2))"
        r"|single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_mlp|proj_out))"
    )

    def __init__(self, net: Any, guidance: float):
        super().__init__(net)
        self.guidance = guidance

    def forward(
        self, x: Tensor, t: Tensor, prompt: Tensor, pooled: Tensor, block: int | None = None, stop: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        net, dtype, grid = self.net, self.net.proj_out.weight.dtype, x.shape[-1] // PACK
        packed = F.pixel_unshuffle(x.to(dtype), PACK).flatten(2).transpose(1, 2)
        image: Tensor = net.x_embedder(packed)
        tokens = image
        scales = [t.new_full(t.shape, self.guidance)] if net.config.guidance_embeds else []
        times = [1000 * each.to(image.dtype) for each in (t, *scales)]
        condition = net.time_text_embed(*times, pooled.to(dtype))
        text = net.context_embedder(prompt.to(dtype))
        positions = net.pos_embed(torch.cat([x.new_zeros(text.shape[1], 3), places(grid, x)]))
        for index, layer in enumerate([*net.transformer_blocks, *net.single_transformer_blocks]):
            text, image = self.through(layer, image, text, condition, positions)
            if index == block:
                tokens = image
                if stop:
                    return tokens
        patches = net.proj_out(net.norm_out(image, condition))
        velocity = F.pixel_shuffle(patches.transpose(1, 2).unflatten(2, (grid, grid)), PACK)
        return velocity if block is None else (velocity, tokens)


def places(grid: int, like: Tensor) -> Tensor:
    """(0, row, column) of each token (grid^2, 3), row-major."""
    line = torch.arange(grid, device=like.device, dtype=like.dtype)
    return torch.stack([line.new_zeros(grid, grid), *torch.meshgrid(line, line, indexing="ij")], 2).flatten(0, 1)


class FluxNetwork(PublishedNetwork):
    """The size of a FLUX transformer; `preset: FLUX.1-dev` stands for all numbers of its config."""

    library = "FluxTransformer2DModel"
    network = Flux
    beside = frozenset({"guidance"})

    num_layers: Few
    """blocks of two streams"""
    num_single_layers: Few
    """blocks of one stream"""
    num_attention_heads: Positive
    """attention heads"""
    guidance_embeds: bool = True
    """whether the network takes a guidance scale"""
    attention_head_dim: Positive = 128
    """channels of an attention head"""
    in_channels: Positive = 64
    """of a token: 4 times those of the latents"""
    joint_attention_dim: Positive = 4096
    """of a token of the prompt"""
    pooled_projection_dim: Positive = 768
    """of the pooled prompt"""
    axes_dims_rope: list[Positive] = [16, 56, 56]
    """channels of a head that turn with the place in the text, the row and the column"""
    guidance: From0 = 4.5
    """guidance scale of teacher and student, as in SwD's code; diffusers' own default is 3.5"""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return preset(value, PRESETS, tuple(cls.model_fields)[:3])

    @property
    def widths(self) -> list[int]:
        return [self.num_attention_heads * self.attention_head_dim] * (self.num_layers + self.num_single_layers)

    @property
    def patch(self) -> int:
        return PACK

    @property
    def channels(self) -> int:
        return self.in_channels // PACK**2

    @property
    def text(self) -> tuple[int, int]:
        return self.joint_attention_dim, self.pooled_projection_dim

    def tokens(self, length: int) -> int:
        return length
