"""Stable Diffusion 3 and 3.5: the MMDiT (arXiv 2403.03206), a rectified flow on the latents of 16 channels.

Positions are sine codes of a fixed density, of which a latent sees the middle of the grid: at a low resolution the
published networks see, and make, a crop of the picture. One that is trained here can spread them over all of it.
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from multiscale.core.settings import Edge, Few, FewOr0, Positive, preset
from multiscale.networks.published.network import CLIP, Published, PublishedNetwork

# transformer/config.json of stabilityai/stable-diffusion-3.5-medium and -large. Their checkpoints also hold the table
# of positions: 2.47 and 8.15 billion numbers.
#            layers heads  text   positions two attentions    parameters
PRESETS = {
    "SD3.5-M": (24,   24,   1536,  384,      tuple(range(13))),  # 2,243,171,520
    "SD3.5-L": (38,   38,   2432,  192,      ()),                # 8,056,627,520
    "small":   (4,    3,    192,   16,       ()),                # of recipes that are trained here
}  # fmt: skip


Positions = Literal["middle", "whole"]


class SD3(Published):
    """`SD3Transformer2DModel`; T = (h/p)^2 tokens of patches p x p."""

    folder = "transformer"
    # The released code asks for `net.0.proj` and `net.2`, which the MLP of the text has, too.
    adapted = r"net\.transformer_blocks\.\d+\.(attn2?\.(to_[qkv]|to_out\.0)|ff(_context)?\.net\.(0\.proj|2))"

    def __init__(self, net: Any, positions: Positions):
        super().__init__(net)
        self.positions = positions

    def forward(
        self, x: Tensor, t: Tensor, prompt: Tensor, pooled: Tensor, block: int | None = None, stop: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        net, dtype = self.net, self.net.proj_out.weight.dtype
        patch, grid = net.config.patch_size, x.shape[-1] // net.config.patch_size
        image: Tensor = self._patches(x.to(dtype)).contiguous()
        tokens = image
        condition = net.time_text_embed(1000 * t, pooled.to(dtype))
        text = net.context_embedder(prompt.to(dtype))
        for index, layer in enumerate(net.transformer_blocks):
            text, image = self.through(layer, image, text, condition)
            if index == block:
                tokens = image
                if stop:
                    return tokens
        patches = net.proj_out(net.norm_out(image, condition))  # (N, T, p p C)
        patches = patches.unflatten(1, (grid, grid)).unflatten(3, (patch, patch, -1))
        velocity: Tensor = patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)
        return velocity if block is None else (velocity, tokens)

    def initialise(self) -> None:
        """Gives DiT's initial weights (arXiv 2212.09748), with which blocks do nothing at first.

        Diffusers' classes are made to be loaded, and keep torch's own.
        """
        for name, layer in self.net.named_modules():
            if not isinstance(layer, nn.Linear):
                continue
            if name == "proj_out" or "norm" in name:  # the output, and the layers that shift, scale and gate
                nn.init.zeros_(layer.weight)
            elif "timestep_embedder" in name:
                nn.init.normal_(layer.weight, std=0.02)
            else:
                nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def _patches(self, x: Tensor) -> Tensor:
        """The tokens (N, T, W) of latents with their positions."""
        embed = self.net.pos_embed
        if self.positions == "middle":
            return cast(Tensor, embed(x))
        patches = cast(Tensor, embed.proj(x))  # (N, W, h/p, h/p)
        edge = embed.pos_embed_max_size
        table = embed.pos_embed.float().unflatten(1, (edge, edge)).permute(0, 3, 1, 2)
        places = F.interpolate(table, patches.shape[-2:], mode="bilinear")
        return (patches + places.to(patches)).flatten(2).transpose(1, 2)


class SD3Network(PublishedNetwork):
    """The size of an MMDiT; `preset: SD3.5-M` stands for all numbers."""

    library = "SD3Transformer2DModel"
    network = SD3
    beside = frozenset({"positions"})

    num_layers: Few
    """transformer blocks"""
    num_attention_heads: Positive
    """attention heads"""
    caption_projection_dim: Positive
    """width of the text's tokens, equal to that of the image's"""
    pos_embed_max_size: Edge
    """edge of the table of positions, in tokens"""
    dual_attention_layers: list[FewOr0] = []
    """blocks with a second attention over the image alone"""
    qk_norm: Literal["rms_norm"] | None = "rms_norm"
    """normalisation of queries and keys"""
    attention_head_dim: Positive = 64
    """channels of an attention head"""
    sample_size: Edge = 128
    """edge of the latents that the distance of positions is counted in"""
    patch_size: Positive = 2
    """edge of a token, in latent pixels"""
    in_channels: Positive = 16
    """of the latents"""
    out_channels: Positive = 16
    """of the latents"""
    joint_attention_dim: Positive = 4096
    """of a token of the prompt"""
    pooled_projection_dim: Positive = 2048
    """of the pooled prompt"""
    positions: Positions = "middle"
    """of tokens, in their table: middle, as published: a low resolution is a crop; whole: a smaller picture"""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return preset(value, PRESETS, tuple(cls.model_fields)[:5])

    @property
    def width(self) -> int:
        """Channels of a token."""
        return self.num_attention_heads * self.attention_head_dim

    @property
    def widths(self) -> list[int]:
        return [self.width] * self.num_layers

    @property
    def patch(self) -> int:
        return self.patch_size

    @property
    def channels(self) -> int:
        return self.in_channels

    @property
    def text(self) -> tuple[int, int]:
        return self.joint_attention_dim, self.pooled_projection_dim

    def tokens(self, length: int) -> int:
        return CLIP + length
