"""Pyramidal flow matching in diffusers: its DiT is the one component."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from multiscale.methods.pyramidal.parts import PyramidalConfig
from multiscale.methods.pyramidal.sampler import PyramidalSampler
from multiscale.methods.pyramidal.settings import PyramidalMethod
from multiscale.networks.autoencoder import Codec
from multiscale.networks.dit import DiT

PAPERS = {
    "2410.05954": "Pyramidal Flow Matching for Efficient Video Generative Modeling",
    "2504.07963": "PixelFlow: Pixel-Space Generative Models with Flow",
}


def built(about: dict[str, Any]) -> tuple[PyramidalConfig, DiT]:
    """The config that `about` holds, and its network with random weights."""
    config = PyramidalConfig.model_validate(about)
    return config, config.build()


def sampler(
    parts: Sequence[tuple[PyramidalConfig, DiT]], settings: PyramidalMethod, codec: Codec, precision: str
) -> PyramidalSampler:
    """The sampler of the one component. Raises ValueError for solvers of other resolutions."""
    ((config, net),) = parts
    return PyramidalSampler(net, config, settings, codec, precision)
