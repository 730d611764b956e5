"""A model of SSD as it is kept on disk: its config, its network, and how the network is called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from multiscale.core.models import ModelConfig
from multiscale.core.resize import bilinear_to
from multiscale.core.settings import Count, Positive
from multiscale.methods.ssd.process import ScaleSpaceProcess, Target
from multiscale.networks.unet import FlexiUNet, UNetNetwork

Use = Literal["flexi", "full", "enlarged"]  # of the UNet
Predict = Callable[[Tensor, Tensor, Tensor | None, int], Tensor]  # (x_t, t, labels, resolution of s) -> x_0 or noise


class SSDConfig(ModelConfig):
    """What rebuilds the denoiser of SSD or DDPM, and its process."""

    kind: Literal["ssd"] = "ssd"
    role: Literal["denoiser"] = "denoiser"
    channels: Positive
    """of the images"""
    resolution: Positive
    """of the images, the full one of the process"""
    classes: Count
    """0: unconditional"""
    process: ScaleSpaceProcess
    unet: Use = "flexi"
    predicts: Target = "x0"
    network: UNetNetwork


def entries_of(config: SSDConfig) -> list[int]:
    """The resolutions at which states enter the UNet: those of the process, or the full one for all.

    Raises ValueError for a resolution of the process that the network cannot take.
    """
    resolutions = config.process.levels_of(config.resolution)
    entries = config.network.entries(config.resolution, len(resolutions) if config.unet == "flexi" else 1)
    for resolution in resolutions if config.unet != "enlarged" else ():
        config.network.level_of(resolution, entries)
    return entries


def build_network(config: SSDConfig) -> FlexiUNet:
    """The UNet of a config. Raises ValueError as `entries_of` does."""
    return config.network.build(config.channels, config.resolution, len(entries_of(config)), config.classes)


def prediction(net: nn.Module, config: SSDConfig) -> Predict:
    """The network as it is called: 'flexi' and 'full' take every state as it is, 'enlarged' the full resolution alone.

    'enlarged' serves resolutions that no UNet can divide (gradual ones): the state is enlarged before the network, and
    the prediction resized to the resolution asked for.
    """
    if config.unet != "enlarged":
        return net
    full = config.resolution
    return lambda x, t, labels, out: bilinear_to(net(bilinear_to(x, full), t, labels, full).float(), out)
