"""A model of SSD as it is kept on disk: its config, its network, and how the network is called."""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import nn

from multiscale.core.models import ModelConfig
from multiscale.core.resize import bilinear_to
from multiscale.core.settings import Count, Positive
from multiscale.guidance import Conditional
from multiscale.methods.ssd.process import ScaleSpaceProcess, Target
from multiscale.networks.unet import FlexiUNet, UNetNetwork

Use = Literal["flexi", "full", "enlarged"]  # of the UNet


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


def prediction(net: nn.Module, config: SSDConfig, resolution: int) -> Conditional:
    """The network as it is called to predict x_0 or the noise at a resolution, from x_t at its own.

    'flexi' and 'full' take every state as it is, 'enlarged' the full resolution alone. The latter serves resolutions
    that no UNet can divide (gradual ones): the state is enlarged before the network, and the prediction resized.
    """
    if config.unet != "enlarged":
        return partial(net, out_resolution=resolution)
    full = config.resolution
    return lambda x, t, *given: bilinear_to(net(bilinear_to(x, full), t, *given).float(), resolution)
