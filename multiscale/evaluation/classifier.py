"""A small convolutional classifier: the judge of whether a sample shows the class that was asked for."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from multiscale.core.pixels import to_signed
from multiscale.core.storage import read_json
from multiscale.core.streams import Draws
from multiscale.training.part import Data, Nets, Part


class Classifier(nn.Module):
    """Images in [-1, 1] (N, C, H, H) -> logits (N, classes): strided convolutions with group norm, then a mean."""

    def __init__(self, channels: int, classes: int, width: int, stages: int):
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1)]
        for stage in range(stages):
            wide = width * 2 ** min(stage, 2)
            wider = width * 2 ** min(stage + 1, 2)
            layers += [nn.GroupNorm(8, wide), nn.GELU(), nn.Conv2d(wide, wider, 3, stride=2, padding=1)]
            layers += [nn.GroupNorm(8, wider), nn.GELU(), nn.Conv2d(wider, wider, 3, padding=1)]
        self.features = nn.Sequential(*layers, nn.GroupNorm(8, wider), nn.GELU())
        self.head = nn.Linear(wider, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean((2, 3)))


class ClassifierPart(Part):
    """Trains the classifier with cross-entropy on images shifted by up to an eighth of their side."""

    def __init__(self, name: str, data: Data, net: Classifier):
        super().__init__(name, data, {"net": net})

    def loss(self, player: str, nets: Nets, batch: dict[str, Tensor], draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        images = to_signed(batch["pixels"])
        reach = images.shape[-1] // 8
        padded = F.pad(images, [reach] * 4, mode="replicate")
        top, left = draws.choice("top", 2 * reach + 1), draws.choice("left", 2 * reach + 1)
        side = images.shape[-1]
        logits = nets["net"](padded[..., top : top + side, left : left + side])
        accuracy = (logits.argmax(1) == batch["label"]).float().mean()
        return F.cross_entropy(logits.float(), batch["label"], label_smoothing=0.05), {"accuracy": accuracy}


@torch.no_grad()
def accuracy(net: Classifier, pixels: Tensor, labels: Tensor, batch: int = 256) -> float:
    """The share of uint8 images (N, C, H, H) that the classifier assigns to their labels (N,)."""
    device = next(net.parameters()).device
    hits = [
        (net(to_signed(pixels[start : start + batch].to(device))).argmax(1).cpu() == labels[start : start + batch])
        for start in range(0, len(pixels), batch)
    ]
    return torch.cat(hits).float().mean().item()


def load(folder: Path) -> Classifier | None:
    """The trained judge in a folder, or None where the set has a single class and there is nothing to judge."""
    config = read_json(folder / "config.json")
    if config["classes"] < 2:
        return None
    net = Classifier(**config)
    net.load_state_dict(load_file(folder / "model.safetensors"))
    return net.eval()
