"""The toy method's sampler."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from multiscale.core.device import default_device
from multiscale.core.pixels import to_unit
from multiscale.core.storage import read_json
from multiscale.core.streams import noise_of_seeds
from multiscale.methods.toy.parts import Means
from multiscale.sampling import Trace


class ToySampler:
    """The mean image of a class, and noise on it."""

    def __init__(self, net: Means, noise: float):
        self.device = default_device()
        self.net, self.noise = net.eval().to(self.device), noise
        self.networks: dict[str, nn.Module] = {"net": self.net}

    @torch.inference_mode()
    def __call__(self, seeds: list[int], labels: Tensor, trace: Trace | None = None) -> Tensor:
        mean = to_unit(self.net(labels.to(self.device)))
        noise = noise_of_seeds(seeds, "toy", tuple(mean.shape[1:])).to(self.device)
        image = (mean + self.noise * noise).clamp(0, 1)
        if trace is not None:
            trace("mean", mean)
            trace("image", image)
        return image


def load_sampler(folders: list[Path], settings: dict, codec: object, precision: str) -> ToySampler:
    """The sampler of the one trained part."""
    net = Means(**read_json(folders[0] / "config.json"))
    net.load_state_dict(load_file(folders[0] / "model.safetensors"))
    return ToySampler(net, settings["noise"])
