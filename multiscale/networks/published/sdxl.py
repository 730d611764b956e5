"""Stable Diffusion XL (arXiv 2307.01952): a U-Net that predicts the noise of a variance-preserving process, as a flow.

The process x' = alpha x0 + sigma eps is a rectified flow in other units: x' / (alpha + sigma) = (1 - t) x0 + t eps with
t = sigma / (alpha + sigma). So schedules, losses and samplers of flows hold for it as they are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor

from multiscale.core.settings import Edge, Few, Positive, preset
from multiscale.networks.published.network import CLIP, Published, PublishedNetwork

# unet/config.json of stabilityai/stable-diffusion-xl-base-1.0: 2,567,463,684 parameters
#            channels          heads        transformers  text
PRESETS = {
    "SDXL":  ((320, 640, 1280), (5, 10, 20), (1, 2, 10),   2048),
}  # fmt: skip
STEPS, FIRST, LAST = 1000, 0.00085, 0.012  # scheduler/scheduler_config.json: betas, evenly spaced in their roots


def _levels() -> np.ndarray:
    betas = np.linspace(FIRST**0.5, LAST**0.5, STEPS) ** 2
    kept = np.cumprod(1 - betas)  # alpha^2
    levels: np.ndarray = np.sqrt(1 - kept) / (np.sqrt(kept) + np.sqrt(1 - kept))
    return levels


LEVELS = _levels().tolist()
NOISIEST = LEVELS[-1]


def levels(device: torch.device | None = None) -> Tensor:
    """The noise level t (1000,) of each timestep of the process, float64: from 0.028 to 0.936."""
    return torch.tensor(LEVELS, dtype=torch.float64, device=device)


def timesteps(t: Tensor) -> Tensor:
    """The timestep (N,) of each noise level, between those of the process linearly, beyond them the first or last."""
    known = levels(t.device)
    after = torch.searchsorted(known, t.double()).clamp(1, STEPS - 1)
    low, high = known[after - 1], known[after]
    return (after - 1 + ((t - low) / (high - low)).clamp(0, 1)).float()


class SDXL(Published):
    """SDXL's `UNet2DConditionModel`; h is a multiple of 4.

    Blocks are those on the way down, the middle one, and those on the way up: 3 is the middle. Their pixels are the
    tokens. `size` is what the network is told of the picture, edge in pixels and no crop: the same at every
    resolution, as in SwD's pipeline.
    """

    folder = "unet"
    adapted = r"net\..*\.transformer_blocks\.\d+\.(attn[12]\.(to_[qkv]|to_out\.0)|ff\.net\.(0\.proj|2))"

    def __init__(self, net: Any, size: int):
        super().__init__(net)
        self.size = size

    def forward(
        self, x: Tensor, t: Tensor, prompt: Tensor, pooled: Tensor, block: int | None = None, stop: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        # No timestep of the process is pure noise. As in the samplers of such processes, what is noisier than the last
        # one is taken for it, whose noise has nearly the same variance.
        known = t.clamp_max(NOISIEST)
        unit, scale = x / norm(t, x), norm(known, x)
        noise, tokens = self.noise(unit, timesteps(known), prompt, pooled, block, stop)
        if noise is None:
            return tokens
        share, given = known.to(x).view(-1, 1, 1, 1), t.to(x).view(-1, 1, 1, 1)
        clean = (scale * unit - share * noise) / (1 - share)
        velocity = torch.where(given > NOISIEST, (x - clean) / given.clamp_min(NOISIEST), (noise - x) / (1 - share))
        return velocity if block is None else (velocity, tokens)

    def noise(
        self, x: Tensor, time: Tensor, prompt: Tensor, pooled: Tensor, block: int | None, stop: bool
    ) -> tuple[Tensor | None, Tensor]:
        """The noise in x of unit variance at a timestep, none with `stop`, and the tokens after `block`."""
        net, dtype = self.net, self.net.conv_out.weight.dtype
        image, prompt = x.to(dtype), prompt.to(dtype)
        edges = x.new_tensor([self.size, self.size, 0, 0, self.size, self.size]).expand(len(x), -1)
        condition = net.time_embedding(net.get_time_embed(image, time))
        added = {"text_embeds": pooled.to(dtype), "time_ids": edges}
        condition = condition + net.get_aug_embed(condition, prompt, added)
        image = net.conv_in(image)
        kept, tokens = [image], image
        for index, layer in enumerate([*net.down_blocks, net.mid_block, *net.up_blocks]):
            text = {"encoder_hidden_states": prompt} if getattr(layer, "has_cross_attention", False) else {}
            if index < len(net.down_blocks):
                image, outputs = layer(image, condition, **text)
                kept.extend(outputs)
            elif layer is net.mid_block:
                image = layer(image, condition, **text)
            else:
                count = len(layer.resnets)
                kept, taken = kept[:-count], tuple(kept[-count:])
                image = layer(image, taken, condition, **text)
            if index == block:
                tokens = image.flatten(2).transpose(1, 2)
                if stop:
                    return None, tokens
        noise: Tensor = net.conv_out(net.conv_act(net.conv_norm_out(image)))
        return noise.to(x.dtype), tokens


def norm(t: Tensor, like: Tensor) -> Tensor:
    """The standard deviation of (1 - t) a + t b for independent a, b of unit variance: 1 / (alpha + sigma)."""
    return torch.hypot(1 - t, t).to(like).view(-1, 1, 1, 1)


class SDXLNetwork(PublishedNetwork):
    """The size of SDXL's U-Net; `preset: SDXL` stands for all numbers of its config."""

    library = "UNet2DConditionModel"
    network = SDXL
    beside = frozenset({"size"})

    block_out_channels: list[Positive]
    """channels at each resolution"""
    attention_head_dim: list[Positive]
    """attention heads at each resolution; diffusers keeps a misnomer"""
    transformer_layers_per_block: list[Few]
    """transformers at each resolution that has some"""
    cross_attention_dim: Positive
    """of a token of the prompt"""
    down_block_types: list[str] = ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"]
    """from the full resolution down"""
    up_block_types: list[str] = ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]
    """from the lowest resolution up"""
    addition_embed_type: str = "text_time"
    """what joins the time: the pooled prompt and the picture's size"""
    addition_time_embed_dim: Positive = 256
    """channels of each number of the picture's size"""
    projection_class_embeddings_input_dim: Positive = 2816
    """channels of the pooled prompt and of all six numbers"""
    use_linear_projection: bool = True
    """around the transformers, linear layers and no convolutions"""
    norm_num_groups: Positive = 32
    """groups of the group normalisation"""
    sample_size: Edge = 128
    """edge of the latents it was trained at"""
    in_channels: Positive = 4
    """of the latents"""
    out_channels: Positive = 4
    """of the latents"""
    size: Edge = 1024
    """edge of the picture in pixels, as the network is told"""

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return preset(value, PRESETS, tuple(cls.model_fields)[:4])

    @property
    def widths(self) -> list[int]:
        down = self.block_out_channels
        return [*down, down[-1], *reversed(down)]

    @property
    def patch(self) -> int:
        return int(2 ** (len(self.block_out_channels) - 1))

    @property
    def channels(self) -> int:
        return self.in_channels

    @property
    def text(self) -> tuple[int, int]:
        numbers = 6 * self.addition_time_embed_dim  # of the picture's size
        return self.cross_attention_dim, self.projection_class_embeddings_input_dim - numbers

    def tokens(self, length: int) -> int:
        return CLIP
