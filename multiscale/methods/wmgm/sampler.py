"""WMGM's sampler: the coarse band by the score model, then the details level by level."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from multiscale.core.device import autocast, cast_weights, default_device, resolve_precision
from multiscale.core.storage import read_json
from multiscale.core.streams import noise_of_seeds
from multiscale.methods.wmgm import details
from multiscale.methods.wmgm.bands import detail, transform_of
from multiscale.methods.wmgm.parts import build_network
from multiscale.sampling import Trace

if TYPE_CHECKING:  # importing diffusers takes seconds that a method in pixels has no use for
    from multiscale.networks.autoencoder import Codec


class WMGMSampler:
    """The coarse band by the score model, then level by level the details and the inverse transform.

    A generator's pass counts as a network call like any other. Raises ValueError unless the parts make each level's
    details once.
    """

    def __init__(self, networks: list[nn.Module], configs: list[dict], settings: dict, precision: str):
        self.device = default_device()
        self.precision = resolve_precision(precision, self.device)
        for net in networks:  # eval: batch norms use their running averages, so that every image stands alone
            cast_weights(net.eval().requires_grad_(False), self.precision)
            net.to(self.device, memory_format=torch.channels_last)
        self.settings = settings
        (self.net, self.config), *others = zip(networks, configs)
        self.depth = self.config["levels"]
        self.makers = {j: (net, config, details.Levels(config)) for net, config in others for j in config["covers"]}
        wanted = list(range(1, self.depth + 1))
        covered = sorted(j for _, config in others for j in config["covers"])
        if covered != wanted:
            raise ValueError(f"detail parts for the levels {covered}; allowed: each of {wanted or 'none'} once")
        self.transform = transform_of(self.config["wavelet"]) if covered else None
        self.networks: dict[str, nn.Module] = {"low": self.net}
        for net, config in others:
            every = len(others) == 1
            self.networks["details" if every else "details-" + "-".join(map(str, config["covers"]))] = net

    @torch.inference_mode()
    def __call__(self, seeds: list[int], labels: Tensor, trace: Trace | None = None) -> Tensor:
        labels = labels.to(self.device)
        with autocast(self.precision, self.device):
            x = self.coarse_band(seeds, labels, trace)
            for level in range(self.depth, 0, -1):
                x = self.transform.merge(x, self.detail_bands(x, level, seeds, labels))
                if trace is not None:
                    trace(*self._picture(x, level - 1))
        return x.clamp(0, 1)

    def coarse_band(self, seeds: list[int], labels: Tensor, trace: Trace | None = None) -> Tensor:
        """x_J (N, C, h, h) from the score model."""
        config = self.config
        undo = self.net.whitening.undo
        watch = (lambda z: None) if trace is None else (lambda z: trace(*self._picture(undo(z), self.depth)))
        shape = config["channels"], config["side"], config["side"]
        return undo(details.solve(self.net, None, labels, seeds, "low", shape, self.settings["solver"], watch))

    def detail_bands(self, x: Tensor, level: int, seeds: list[int], labels: Tensor) -> Tensor:
        """d_level given x_level, from the seeds' noise."""
        net, config, levels = self.makers[level]
        condition, stream = levels.condition(x, level), detail(level)
        if config["model"] == "score":
            shape = len(config["statistics"]["details"][level - 1]), *condition.shape[2:]
            made = details.solve(net, condition, labels, seeds, stream, shape, self.settings["detail_solver"])
        else:
            noise = noise_of_seeds(seeds, stream, tuple(condition.shape[1:])).to(x.device) if config["noisy"] else None
            made = details.generated(net, condition, noise)
        return levels.decode(made, level)

    def _picture(self, x: Tensor, level: int) -> tuple[str, Tensor]:
        """x_level as a small image in [0, 1]."""
        gain = self.transform.gain**level if level else 1
        return f"{x.shape[-1]} px", (x / gain).clamp(0, 1)


def load_sampler(folders: list[Path], settings: dict, codec: Codec | None, precision: str) -> WMGMSampler:
    """The sampler of the trained parts, the coarse band's first; images are pixels, so the codec has no say."""
    configs = [read_json(folder / "config.json") for folder in folders]
    networks = [build_network(config) for config in configs]
    for net, folder in zip(networks, folders):
        net.load_state_dict(load_file(folder / "model.safetensors"))
    return WMGMSampler(networks, configs, settings, precision)
