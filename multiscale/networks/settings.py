"""The settings of the networks that several methods use, and their published presets."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field, model_validator

from multiscale.networks import dit, unet
from multiscale.settings import Bad, Positive, Section, allowed_of, preset


class DiTNetwork(Section):
    """A DiT's size; `preset: NAME` in a recipe stands for all four numbers."""

    depth: Positive
    width: Positive
    heads: Positive
    patch: Positive

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        return preset(value, dit.PRESETS, ("depth", "width", "heads", "patch"))

    @model_validator(mode="after")
    def _check(self) -> DiTNetwork:
        if self.width % self.heads or self.width % 4:
            raise Bad("width", self.width, f"a multiple of heads ({self.heads}) and of 4")
        return self


class UNetNetwork(Section):
    """A UNet's size; `preset: NAME` in a recipe stands for all of it."""

    width: Positive
    multipliers: Annotated[list[Positive], Field(min_length=1)]  # of the width, one a level
    blocks: Positive  # residual blocks a level
    attention: list[Positive]  # sides that have it
    heads: Positive
    groups: Positive
    top_block: bool = False  # the block that the published plain UNet runs and the published Flexi-UNet never does

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        sizes = {name: row[1:] for name, row in unet.PRESETS.items()}  # without the side that it was published for
        return preset(value, sizes, ("width", "multipliers", "blocks", "attention", "heads", "groups"))


def check_unet(key: str, network: UNetNetwork, side: int) -> None:
    """Whether a plain UNet can work at a side."""
    try:
        with torch.device("meta"):
            unet.FlexiUNet(1, side, levels=1, **network.model_dump())
    except ValueError as error:
        raise Bad(f"{key}.network.multipliers", network.multipliers, allowed_of(error)) from None
