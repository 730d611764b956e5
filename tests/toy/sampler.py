"""The sampler of the toy method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from multiscale.core import models
from multiscale.core.pixels import to_unit
from multiscale.core.streams import noise_of_seeds
from multiscale.methods.toy.parts import Means, MeansConfig
from multiscale.methods.toy.settings import ToyMethod
from multiscale.networks.autoencoder import Codec
from multiscale.sampling import NetworkSampler, Trace


class ToySampler(NetworkSampler):
    """The mean image of a class, with noise on it."""

    def __init__(self, net: Means, noise: float, precision: str):
        super().__init__({"net": net}, precision)
        self.noise = noise

    def images(self, seeds: list[int], labels: Tensor, trace: Trace | None) -> Tensor:
        mean = to_unit(self.networks["net"](labels))
        noise = noise_of_seeds(seeds, "toy", tuple(mean.shape[1:]), self.device)
        image = (mean + self.noise * noise).clamp(0, 1)
        if trace is not None:
            trace("mean", mean)
            trace("image", image)
        return image


def load_sampler(folders: Sequence[Path], settings: ToyMethod, codec: Codec, precision: str) -> ToySampler:
    """The sampler of the trained part; the toy method needs no codec, because it works on pixels."""
    (folder,) = folders
    net = models.load_weights(models.config(folder, MeansConfig).build(), folder)
    return ToySampler(net, settings.noise, precision)
