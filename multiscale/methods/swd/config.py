"""What the folders of a pyramid, a trained teacher and a student say of themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import nn

from multiscale.core.models import ModelConfig
from multiscale.core.normalisation import Normalisation
from multiscale.core.settings import Section
from multiscale.methods.swd.schedule import Schedule
from multiscale.methods.swd.upscaling import Strategy
from multiscale.networks import transformers


class Statistics(Section):
    """What `statistics.json` says of a pyramid."""

    classes: int
    latent: Normalisation
    """of the full resolution's latents, applied at every resolution"""
    grids: dict[str, int]
    """resolution in pixels -> that of its latents"""

    @classmethod
    def of(cls, folder: Path) -> Statistics:
        """The statistics of the pyramid in a folder."""
        return cls.model_validate_json((folder / "statistics.json").read_text())


class NetworkConfig(ModelConfig):
    """The transformer that teacher and student share, on normalised latents."""

    kind: Literal["swd"] = "swd"
    channels: int
    """of the latents"""
    classes: int
    latent: Normalisation
    network: transformers.Transformer

    def build(self) -> nn.Module:
        """The network with random weights."""
        return transformers.build(self.network, self.channels, self.classes)


class TeacherConfig(NetworkConfig):
    """A teacher."""

    role: Literal["teacher"] = "teacher"
    resolution: int
    """of the latents at the full resolution"""


class StudentConfig(NetworkConfig):
    """A student, with the steps that it was trained for."""

    role: Literal["student"] = "student"
    schedule: Schedule
    """its resolutions are those of the latents"""
    upscaling: Strategy
