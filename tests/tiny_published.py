"""Tiny networks of the published classes, with conditions drawn for them, and a tiny CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from multiscale.core.compat import make_torchvision_importable
from multiscale.networks import clip
from multiscale.networks.published.flux import FluxNetwork
from multiscale.networks.published.sd3 import SD3Network
from multiscale.networks.published.sdxl import SDXLNetwork

NETWORKS = {
    "sd3": SD3Network(
        num_layers=3,
        num_attention_heads=2,
        caption_projection_dim=16,
        pos_embed_max_size=12,
        dual_attention_layers=[0],
        attention_head_dim=8,
        sample_size=16,
        in_channels=4,
        out_channels=4,
        joint_attention_dim=32,
        pooled_projection_dim=64,
    ),
    "flux": FluxNetwork(
        num_layers=2,
        num_single_layers=2,
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=16,
        joint_attention_dim=32,
        pooled_projection_dim=64,
        axes_dims_rope=[4, 6, 6],
    ),
    "sdxl": SDXLNetwork(
        block_out_channels=[8, 16, 16],
        attention_head_dim=[1, 2, 2],
        transformer_layers_per_block=[1, 1, 2],
        cross_attention_dim=32,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=64 + 6 * 8,
        norm_num_groups=4,
        sample_size=16,
        size=128,
    ),
}
BLOCKS = {"sd3": 1, "flux": 2, "sdxl": 3}  # flux: the first block of one stream


def built(family: str, seed: int = 0):
    """The tiny network of a family, in evaluation."""
    torch.manual_seed(seed)
    return NETWORKS[family].build().eval()


def given(count: int = 2, resolution: int = 16):
    """x, t, prompt and pooled prompt."""
    draws = torch.Generator().manual_seed(1)
    x = torch.randn(count, 4, resolution, resolution, generator=draws)
    t = torch.linspace(0.3, 0.7, count)
    return x, t, torch.randn(count, 5, 32, generator=draws), torch.randn(count, 64, generator=draws)


def small_clip(folder: Path, texts: Sequence[str], sign: int = 1) -> None:
    """A CLIP of transformers with random weights, and its processor, that takes these texts; sign: of its scores."""
    make_torchvision_importable()
    from transformers import CLIPImageProcessor, CLIPProcessor

    torch.manual_seed(0)
    tokenizer = clip.words(texts)
    net = clip.build(tokenizer, resolution=16, channels=3, width=8, layers=1, heads=2, patch=8)
    net.visual_projection.weight.data *= sign
    net.save_pretrained(folder)
    size = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    CLIPProcessor(CLIPImageProcessor(**size), tokenizer).save_pretrained(folder)
