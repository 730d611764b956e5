"""MSF: multi-scale latent factorisation (arXiv 2501.13349). One rectified-flow DiT for each scale of the latents.

Scale 0 makes the base from the class alone; each later scale makes a residual, given everything made so far (the
input prior, concatenated along channels). With one scale this is the plain DiT (arXiv 2212.09748), its control.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from multiscale.core.device import autocast, cast_weights, default_device, resolve_precision
from multiscale.core.pixels import to_unit
from multiscale.core.storage import Table, read_json
from multiscale.core.streams import Draws, noise_of_seeds
from multiscale.networks.dit import DiT
from multiscale.processes import flow
from multiscale.sampling import Trace
from multiscale.scales.residual import accumulate, per_channel, prior
from multiscale.training.part import Data, Nets, Part

if TYPE_CHECKING:  # importing diffusers takes seconds that training a part has no use for
    from multiscale.autoencoder import Codec


class ScalePart(Part):
    """The flow of one scale: target y_k, normalised; prior from the data's own y_0..y_{k-1} (teacher forcing)."""

    def __init__(
        self, name: str, data: Data, net: DiT, config: dict, label_dropout: float, times: str, prior_noise: float
    ):
        super().__init__(name, data, {"net": net})
        self.index, self.sides = config["index"], config["sides"]
        self.mean, self.std = per_channel(config["mean"]), per_channel(config["std"])
        self.label_dropout, self.times, self.prior_noise = label_dropout, times, prior_noise
        self.null = net.null_label

    def loss(self, player: str, nets: Nets, batch: dict[str, Tensor], draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        targets = [batch[f"y{k}"] for k in range(self.index + 1)]
        data = (targets[-1] - self.mean.to(targets[-1])) / self.std.to(targets[-1])
        dropped = draws.uniform("label") < self.label_dropout
        labels = torch.where(dropped, self.null, batch["label"])
        before = None
        if self.index:
            before = prior(targets[:-1], self.sides[self.index], self.sides[-1])
            if self.prior_noise:  # against the gap between the data's prior and a sampled one
                before = before + self.prior_noise * draws.normal("prior", *before.shape[1:])
        return flow.loss(lambda x, t: conditioned(nets["net"], before)(x, t, labels), data, draws, self.times), {}


def conditioned(net: nn.Module, before: Tensor | None):
    """The network with its input prior (N, C, h, h) concatenated, if it has one; twice for a guided, doubled batch."""
    if before is None:
        return net
    return lambda x, t, labels: net(torch.cat([x, before.repeat(len(x) // len(before), 1, 1, 1)], 1), t, labels)


def build_network(config: dict) -> DiT:
    """The DiT of one scale: its input holds the state, and the prior from the second scale on."""
    channels = len(config["mean"])
    return DiT(channels * (2 if config["index"] else 1), channels, classes=config["classes"], **config["network"])


def build_part(name: str, part: dict, folder: Path, classes: int) -> tuple[ScalePart, dict]:
    """The part `part` (its params section) on the decomposition in `folder`."""
    statistics = read_json(folder / "statistics.json")
    scale = statistics["scales"][part["index"]]
    config = {
        "index": part["index"],
        "sides": [entry["side"] for entry in statistics["scales"]],  # of the latent grids
        "mean": scale["mean"],
        "std": scale["std"],
        "latent_shift": statistics["shift"],
        "latent_scale": statistics["scale"],
        "classes": classes,
        "network": part["network"],
    }
    table = Table.open(folder / "targets.safetensors", "label", *(f"y{k}" for k in range(part["index"] + 1)))
    net = build_network(config)
    return ScalePart(name, table, net, config, part["label_dropout"], part["times"], part["prior_noise"]), config


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
