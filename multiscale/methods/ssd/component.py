"""SSD and DDPM in diffusers: the UNet is the one component of the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from multiscale.methods.ssd.model import SSDConfig, build_network
from multiscale.methods.ssd.sampler import ScaleSpaceSampler
from multiscale.methods.ssd.settings import SSDMethod
from multiscale.networks.autoencoder import Codec
from multiscale.networks.unet import FlexiUNet

PAPERS = {"2603.08709": "Scale Space Diffusion"}


def built(about: dict[str, Any]) -> tuple[SSDConfig, FlexiUNet]:
    """The config that `about` holds, and its network with random weights."""
    config = SSDConfig.model_validate(about)
    return config, build_network(config)


def sampler(
    parts: Sequence[tuple[SSDConfig, FlexiUNet]], settings: SSDMethod, codec: Codec, precision: str
) -> ScaleSpaceSampler:
    """The sampler of the one component. Its images are pixels: the codec is not used."""
    ((config, net),) = parts
    return ScaleSpaceSampler(net, config, settings.solver, precision)
