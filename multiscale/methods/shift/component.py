"""The resolution shift in diffusers: the network of the teacher, with the schedule in its config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from multiscale.methods.shift.parts import ShiftConfig
from multiscale.methods.shift.sampler import ShiftSampler
from multiscale.methods.shift.settings import ShiftMethod
from multiscale.networks.autoencoder import Codec

PAPERS = {
    "2403.03206": "Scaling Rectified Flow Transformers for High-Resolution Image Synthesis",
    "2503.18940": "Training-free Diffusion Acceleration with Bottleneck Sampling",
}


def built(about: dict[str, Any]) -> tuple[ShiftConfig, nn.Module]:
    """The config that `about` holds, and its network with random weights."""
    config = ShiftConfig.model_validate(about)
    return config, config.build()


def sampler(
    parts: Sequence[tuple[ShiftConfig, nn.Module]], settings: ShiftMethod, codec: Codec, precision: str
) -> ShiftSampler:
    """The sampler of the one component."""
    ((config, net),) = parts
    return ShiftSampler(net, config, settings, codec, precision)
