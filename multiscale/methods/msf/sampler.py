"""MSF's sampler: one flow a scale, from the coarsest on (Algorithm 3)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from multiscale import flow
from multiscale.core.device import autocast, cast_weights, default_device, resolve_precision
from multiscale.core.pixels import per_channel, to_unit
from multiscale.core.storage import read_json
from multiscale.core.streams import noise_of_seeds
from multiscale.methods.msf.parts import build_network, conditioned
from multiscale.methods.msf.residual import accumulate, prior
from multiscale.networks.dit import DiT
from multiscale.sampling import Trace

if TYPE_CHECKING:  # importing diffusers takes seconds that training a part has no use for
    from multiscale.networks.autoencoder import Codec


class MSFSampler:
    """Scale by scale, each an ODE from noise, added up and decoded (Algorithm 3)."""

    def __init__(self, networks: list[DiT], configs: list[dict], scales: list[dict], codec: Codec, precision: str):
        self.device = default_device()
        self.precision = resolve_precision(precision, self.device)
        self.nets = [cast_weights(net.eval().requires_grad_(False), self.precision).to(self.device) for net in networks]
        self.networks: dict[str, nn.Module] = {f"scale-{k}": net for k, net in enumerate(self.nets)}
        self.codec = cast_weights(codec, self.precision).to(self.device, memory_format=torch.channels_last)
        self.configs, self.scales = configs, scales
        self.sides = configs[0]["sides"]

    @torch.inference_mode()
    def __call__(self, seeds: list[int], labels: Tensor, trace: Trace | None = None) -> Tensor:
        labels = labels.to(self.device)
        with autocast(self.precision, self.device):
            targets: list[Tensor] = []
            for k, side in enumerate(self.sides):
                targets.append(self._sample_scale(k, side, targets, seeds, labels, trace))
            return self._image(accumulate(targets, self.sides[-1]))

    def _sample_scale(
        self, k: int, side: int, before: list[Tensor], seeds: list[int], labels: Tensor, trace: Trace | None
    ) -> Tensor:
        config, settings, net = self.configs[k], self.scales[k], self.nets[k]
        mean, std = per_channel(config["mean"]).to(self.device), per_channel(config["std"]).to(self.device)
        given = prior(before, side, self.sides[-1]) if before else None
        network = conditioned(net, given)
        velocity = flow.guided(lambda x, t, c: network(x, t, c).float(), labels, net.null_label, settings["cfg"])
        show = (lambda x: None) if trace is None else (lambda x: trace(*self._picture(x * std + mean, given)))
        x = noise_of_seeds(seeds, f"scale-{k}", (len(config["mean"]), side, side)).to(self.device)
        return flow.SOLVERS[settings["method"]](velocity, x, settings["steps"], show) * std + mean

    def _picture(self, y: Tensor, given: Tensor | None) -> tuple[str, Tensor]:
        """The image so far at the side of this scale."""
        image = self._image(y if given is None else given + y)
        return f"{image.shape[-1]} px", image

    def _image(self, z: Tensor) -> Tensor:
        config = self.configs[0]
        shift, scale = per_channel(config["latent_shift"]).to(z), per_channel(config["latent_scale"]).to(z)
        return to_unit(self.codec.decode(z * scale + shift))


def load_sampler(folders: list[Path], settings: dict, codec: Codec, precision: str) -> MSFSampler:
    """The sampler of the trained parts in `folders`, from the coarsest scale on."""
    configs = [read_json(folder / "config.json") for folder in folders]
    networks = [build_network(config) for config in configs]
    for net, folder in zip(networks, folders):
        net.load_state_dict(load_file(folder / "model.safetensors"))
    return MSFSampler(networks, configs, settings["scales"], codec, precision)
