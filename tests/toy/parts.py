"""The toy method's one part: it learns the mean image of each class."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from multiscale.core.pixels import to_signed
from multiscale.core.storage import Table
from multiscale.core.streams import Draws
from multiscale.training.part import Nets, Part


class Means(nn.Module):
    """labels (N,) -> images (N, C, H, H) in [-1, 1]."""

    def __init__(self, classes: int, shape: list[int]):
        super().__init__()
        self.images = nn.Parameter(torch.zeros(classes, *shape))

    def forward(self, labels: Tensor) -> Tensor:
        return self.images[labels]


class MeanPart(Part):
    """Squared error, whose minimum is the mean."""

    main = "net"

    def loss(self, player: str, nets: Nets, batch: dict[str, Tensor], draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        return (nets["net"](batch["label"]) - to_signed(batch["pixels"])).square().mean(), {}


def build_part(name: str, part: dict, folder: Path, classes: int) -> tuple[MeanPart, dict]:
    """The part on the images in `folder`."""
    table = Table.open(folder / "targets.safetensors", "pixels", "label")
    config = {"classes": classes, "shape": list(table.arrays["pixels"].shape[1:])}
    return MeanPart(name, table, {"net": Means(**config)}), config
