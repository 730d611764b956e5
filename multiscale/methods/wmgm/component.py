"""WMGM and SGM in diffusers: the coarse band and each model of details are components of the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from multiscale.methods.wmgm.details import DetailsConfig, ScoreDetailsConfig
from multiscale.methods.wmgm.parts import CoarseConfig
from multiscale.methods.wmgm.sampler import WMGMSampler, config_of, sampler_of
from multiscale.methods.wmgm.settings import WMGMMethod
from multiscale.networks.autoencoder import Codec

PAPERS = {"2411.09356": "Multi-scale Generative Modeling for Fast Sampling"}
PACKAGES = ("PyWavelets",)
Config = CoarseConfig | DetailsConfig | ScoreDetailsConfig


def built(about: dict[str, Any]) -> tuple[Config, nn.Module]:
    """The config that `about` holds, and its network with random weights."""
    config: Config = config_of(about.get("role")).model_validate(about)
    return config, config.build()


def sampler(
    parts: Sequence[tuple[Config, nn.Module]], settings: WMGMMethod, codec: Codec, precision: str
) -> WMGMSampler:
    """The sampler of components; its images are pixels: the codec is not used."""
    return sampler_of(parts, settings, precision, "pipeline")
