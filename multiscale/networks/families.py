"""The networks that SwD trains and distils: DiT, conditioned on classes; SD3, FLUX and SDXL, on text."""

from __future__ import annotations

from collections.abc import Container
from typing import Annotated, Any

from pydantic import BaseModel, Discriminator, Tag
from torch import nn

from multiscale.core.settings import FAMILIES
from multiscale.networks.dit import DiTNetwork
from multiscale.networks.published import flux, sd3, sdxl
from multiscale.networks.published.flux import FluxNetwork
from multiscale.networks.published.network import PublishedNetwork
from multiscale.networks.published.sd3 import SD3Network
from multiscale.networks.published.sdxl import SDXLNetwork

DIT, SD3, FLUX, SDXL = FAMILIES
TELLING: dict[str, tuple[str, Container[str]]] = {  # a field that tells the family, and presets of all fields
    FLUX: ("num_single_layers", flux.PRESETS),  # which has layers, too
    SD3: ("num_layers", sd3.PRESETS),
    SDXL: ("block_out_channels", sdxl.PRESETS),
}


def _family(value: Any, rest: str = DIT) -> str:
    given: dict[str, Any] = value.model_dump() if isinstance(value, BaseModel) else value
    if not isinstance(given, dict):
        return rest
    told = (family for family, (field, presets) in TELLING.items() if field in given or given.get("preset") in presets)
    return next(told, rest)


def _published(value: Any) -> str:
    return _family(value, SD3)


PublishedFamily = Annotated[
    Annotated[SD3Network, Tag(SD3)] | Annotated[FluxNetwork, Tag(FLUX)] | Annotated[SDXLNetwork, Tag(SDXL)],
    Discriminator(_published),
]
Network = Annotated[
    Annotated[DiTNetwork, Tag(DIT)]
    | Annotated[SD3Network, Tag(SD3)]
    | Annotated[FluxNetwork, Tag(FLUX)]
    | Annotated[SDXLNetwork, Tag(SDXL)],
    Discriminator(_family),
]


def build(network: DiTNetwork | PublishedNetwork, channels: int, classes: int) -> nn.Module:
    """The network with random weights, for latents of so many channels; a DiT for so many classes."""
    return network.build(channels, channels, classes) if isinstance(network, DiTNetwork) else network.build()


def width(network: DiTNetwork | PublishedNetwork, block: int) -> int:
    """Channels of a token after a block, counted from zero."""
    return network.width if isinstance(network, DiTNetwork) else network.widths[block]
