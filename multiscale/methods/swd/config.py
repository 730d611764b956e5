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
from multiscale.networks import families


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
    """The network that teacher and student share, on normalised latents."""

    kind: Literal["swd"] = "swd"
    channels: int
    """of the latents"""
    classes: int
    latent: Normalisation
    network: families.Network

    def build(self) -> nn.Module:
        """The network with random weights."""
        return families.build(self.network, self.channels, self.classes)


class TeacherConfig(NetworkConfig):
    """A teacher."""

    role: Literal["teacher", "published"] = "teacher"
    """published: its weights were fetched, and are bf16"""
    resolution: int
    """of the latents at the full resolution"""


class StudentConfig(NetworkConfig):
    """A student, with the steps that it was trained for."""

    role: Literal["student"] = "student"
    schedule: Schedule
    """its resolutions are those of the latents"""
    upscaling: Strategy


class LoraConfig(NetworkConfig):
    """A student that is a LoRA on a network of diffusers, with the steps that it was trained for."""

    role: Literal["lora"] = "lora"
    rank: int
    """alpha is the same"""
    teacher: str
    """folder of the network beneath, from that of the student"""
    digest: str
    """SHA-256 of the weights there"""
    schedule: Schedule
    """its resolutions are those of the latents"""
    upscaling: Strategy
