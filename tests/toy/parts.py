"""The only part of the toy method: it learns the mean image of each class."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from multiscale.core.models import ModelConfig
from multiscale.core.pixels import to_signed
from multiscale.core.storage import Table, read_json
from multiscale.core.streams import Draws
from multiscale.methods.toy.settings import ToyPart
from multiscale.training.part import Batch, Loss, Nets, Part


class Means(nn.Module):
    """Labels (N,) -> images (N, C, H, H) in [-1, 1]."""

    def __init__(self, classes: int, shape: list[int]):
        super().__init__()
        self.images = nn.Parameter(torch.zeros(classes, *shape))

    def forward(self, labels: Tensor) -> Tensor:
        return self.images[labels]


class MeansConfig(ModelConfig):
    """What rebuilds the network."""

    kind: Literal["toy"] = "toy"
    role: Literal["means"] = "means"
    classes: int
    shape: list[int]
    """(C, H, H) of an image"""

    def build(self) -> Means:
        return Means(self.classes, self.shape)


class MeansPart(Part):
    """Squared error, whose minimum is the mean."""

    def loss(self, network: str, nets: Nets, batch: Batch, draws: Draws) -> Loss:
        return (nets["net"](batch["label"]) - to_signed(batch["pixels"])).square().mean(), {}


def build_part(name: str, settings: ToyPart, folder: Path) -> MeansPart:
    """The part on the images in `folder`."""
    table = Table.open(folder / "targets.safetensors", "pixels", "label")
    classes: int = read_json(folder / "statistics.json")["classes"]
    config = MeansConfig(classes=classes, shape=list(table.arrays["pixels"].shape[1:]))
    return MeansPart(name, table, {"net": config.build()}, config)
