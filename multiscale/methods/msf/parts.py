"""MSF: multi-scale latent factorisation (arXiv 2501.13349). One rectified-flow DiT for each scale of the latents.

Scale 0 makes the base from the class alone; each later scale makes a residual, given everything made so far (the
input prior, concatenated along channels). With one scale this is the plain DiT (arXiv 2212.09748), its control.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from multiscale import flow
from multiscale.core.pixels import per_channel
from multiscale.core.storage import Table, read_json
from multiscale.core.streams import Draws
from multiscale.methods.msf.residual import prior
from multiscale.networks.dit import DiT
from multiscale.training.part import Data, Nets, Part


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
