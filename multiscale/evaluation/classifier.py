"""A small convolutional classifier, which measures whether samples show their class.

A class may consist of factors, such as an arrangement and the objects in two places. Then each factor has logits of its
own, and the logits of a class are the sums of those of its factors: their probabilities are multiplied.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from multiscale.core import models
from multiscale.core.device import default_device
from multiscale.core.pixels import to_signed
from multiscale.core.streams import Draws
from multiscale.networks.group_norm import GroupNorm
from multiscale.training.part import Batch, Data, Loss, Nets, Part

QUARTERS = 4


class Classifier(nn.Module):
    """Images in [-1, 1] (N, C, H, H) -> logits (N, classes): strided convolutions, group norm, average pooling.

    factors: the number of values of each, if classes consist of them, row-major. Factors may differ in their place in
    the image, so that the average is then taken over each quarter of it.
    """

    def __init__(self, channels: int, factors: list[int], width: int, stages: int):
        super().__init__()
        self.factors = factors
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1)]
        for stage in range(stages):
            wide = width * 2 ** min(stage, 2)
            wider = width * 2 ** min(stage + 1, 2)
            layers += [GroupNorm(8, wide), nn.GELU(), nn.Conv2d(wide, wider, 3, stride=2, padding=1)]
            layers += [GroupNorm(8, wider), nn.GELU(), nn.Conv2d(wider, wider, 3, padding=1)]
        self.features = nn.Sequential(*layers, GroupNorm(8, wider), nn.GELU())
        self.head = nn.Linear(wider if len(factors) == 1 else QUARTERS * wider, sum(factors))

    def forward(self, images: Tensor) -> Tensor:
        features = self.features(images)
        whole = len(self.factors) == 1
        pooled = features.mean((2, 3)) if whole else F.adaptive_avg_pool2d(features, 2).flatten(1)
        logits, *others = self.head(pooled).split(self.factors, 1)
        for other in others:
            logits = (logits[:, :, None] + other[:, None]).flatten(1)
        return cast(Tensor, logits)


class ClassifierConfig(models.ModelConfig):
    """The config of a classifier."""

    kind: Literal["classifier"] = "classifier"
    role: Literal["classifier"] = "classifier"
    channels: int
    classes: int | list[int]
    """how many, or how many values of each factor that a class consists of, row-major"""
    width: int
    """channels of the first layer"""
    stages: int

    def build(self) -> Classifier:
        """The network with random weights."""
        factors = [self.classes] if isinstance(self.classes, int) else self.classes
        return Classifier(self.channels, factors, self.width, self.stages)

    @property
    def count(self) -> int:
        """The number of classes."""
        return self.classes if isinstance(self.classes, int) else math.prod(self.classes)


class ClassifierPart(Part):
    """Trains the classifier with cross-entropy on images shifted by up to an eighth of their resolution."""

    def __init__(self, name: str, data: Data, config: ClassifierConfig):
        super().__init__(name, data, {"net": config.build()}, config)

    def loss(self, network: str, nets: Nets, batch: Batch, draws: Draws) -> Loss:
        images = to_signed(batch["pixels"])
        resolution, reach = images.shape[-1], images.shape[-1] // 8
        padded = F.pad(images, [reach] * 4, mode="replicate")
        top, left = draws.choice("top", 2 * reach + 1), draws.choice("left", 2 * reach + 1)
        logits = nets["net"](padded[..., top : top + resolution, left : left + resolution])
        accuracy = (logits.argmax(1) == batch["label"]).float().mean()
        return F.cross_entropy(logits.float(), batch["label"], label_smoothing=0.05), {"accuracy": accuracy}


@torch.no_grad()
def hits(net: Classifier, pixels: Tensor, labels: Tensor, batch: int = 256) -> Tensor:
    """Whether the predicted class of each of uint8 images (N, C, H, H) is its label (N,)."""
    device = next(net.parameters()).device
    found = [
        (net(to_signed(pixels[start : start + batch].to(device))).argmax(1).cpu() == labels[start : start + batch])
        for start in range(0, len(pixels), batch)
    ]
    return torch.cat(found)


def accuracy(net: Classifier, pixels: Tensor, labels: Tensor, batch: int = 256) -> float:
    """The share of uint8 images (N, C, H, H) whose predicted class is their label (N,)."""
    return hits(net, pixels, labels, batch).float().mean().item()


def load(folder: Path) -> Classifier | None:
    """The trained classifier in a folder, on the default device; None for a dataset with one class."""
    config = models.config(folder, ClassifierConfig)
    return models.load_weights(config.build(), folder).eval().to(default_device()) if config.count > 1 else None
