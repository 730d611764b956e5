"""The transformers that SwD trains and distils: DiT, conditioned on classes, and SD3's MMDiT, conditioned on text."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Discriminator, Tag
from torch import nn

from multiscale.core.settings import FAMILIES
from multiscale.networks.dit import DiTNetwork
from multiscale.networks.published.sd3 import PRESETS, SD3Network

DIT, SD3 = FAMILIES


def _family(value: Any) -> str:
    given = value.model_dump() if isinstance(value, BaseModel) else value if isinstance(value, dict) else {}
    return SD3 if "num_layers" in given or given.get("preset") in PRESETS else DIT


Transformer = Annotated[Annotated[DiTNetwork, Tag(DIT)] | Annotated[SD3Network, Tag(SD3)], Discriminator(_family)]


def build(network: DiTNetwork | SD3Network, channels: int, classes: int) -> nn.Module:
    """The network with random weights, for latents of so many channels; a DiT for so many classes."""
    return network.build(channels, channels, classes) if isinstance(network, DiTNetwork) else network.build()
