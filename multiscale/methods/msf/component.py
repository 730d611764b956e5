"""MSF in diffusers: each scale's DiT is a component of the pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from multiscale.methods.msf.parts import ScaleConfig
from multiscale.methods.msf.sampler import MSFSampler, sampler_of
from multiscale.methods.msf.settings import MSFMethod
from multiscale.networks.autoencoder import Codec
from multiscale.networks.dit import DiT

PAPERS = {"2501.13349": "MSF: Efficient Diffusion Model via Multi-Scale Latent Factorize"}


def built(about: dict[str, Any]) -> tuple[ScaleConfig, DiT]:
    """The config that `about` holds, and its network with random weights."""
    config = ScaleConfig.model_validate(about)
    return config, config.build()


def sampler(parts: Sequence[tuple[ScaleConfig, DiT]], settings: MSFMethod, codec: Codec, precision: str) -> MSFSampler:
    """The sampler of components. Raises ValueError for solvers of other scales."""
    return sampler_of(parts, settings, codec, precision, "pipeline")
