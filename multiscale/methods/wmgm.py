"""WMGM: a score model for the coarse wavelet band, one forward pass a level for the details (arXiv 2411.09356).

p(x_0) = p(x_J) prod_j p(d_j | x_j). Parts have a role: 'low' is the score model of x_J; 'detail' makes the d_j by a
'gan', a 'regression' or a 'score' model (WSGM), one network for every level or one a level, from wavelets or from
pixels. Without any detail part, on the images themselves, this is SGM (arXiv 2011.13456), its control.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from multiscale.core.device import autocast, cast_weights, default_device, resolve_precision
from multiscale.core.storage import Table, read_json
from multiscale.core.streams import Draws, noise_of_seeds
from multiscale.networks.score_net import ScoreNet
from multiscale.processes import details, score
from multiscale.sampling import Trace
from multiscale.scales import whitening
from multiscale.scales.bands import LOW, PIXELS, detail, transform_of
from multiscale.training.part import Data, Nets, Part

if TYPE_CHECKING:  # importing diffusers takes seconds that a method in pixels has no use for
    from multiscale.autoencoder import Codec

BLOCK = 1024


class ScorePart(Part):
    """The score model of the coarse band, or of the images themselves (SGM), whitened."""

    def __init__(self, name: str, data: Data, net: ScoreNet, config: dict, part: dict):
        super().__init__(name, data, {"net": net})
        self.column, self.label_dropout = config["column"], part["label_dropout"]
        self.weight = score.weight_of(part["predicts"], part["snr_cap"])

    def loss(self, player: str, nets: Nets, batch: dict[str, Tensor], draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        net = self.players["net"]
        labels = details.dropped(net.null_label, self.label_dropout, batch, draws)
        data = net.whitening(images_of(batch[self.column]))
        return score.loss(lambda x, t: nets["net"](x, t, labels), data, draws, self.weight), {}


def images_of(rows: Tensor) -> Tensor:
    """A stored band as it is, stored uint8 pixels as images in [0, 1]."""
    return rows.float() / 255 if rows.dtype == torch.uint8 else rows


def build_network(config: dict) -> nn.Module:
    """The network of a config, its numbers still to be loaded."""
    if config["role"] == "detail":
        return details.build_score(config) if config["model"] == "score" else details.build_generator(config)
    channels, side = config["channels"], config["side"]
    unfitted = whitening.unfitted(config["whitening"], channels, side)
    return ScoreNet(channels, channels, side, config["classes"], config["network"], unfitted, config["predicts"])


def build_part(name: str, part: dict, folder: Path, classes: int) -> tuple[Part, dict]:
    """The part `part` (its params section) on the decomposition in `folder`."""
    build = {"low": _build_low, "detail": _build_detail}[part["role"]]
    return build(name, part, folder, classes)


def _build_low(name: str, part: dict, folder: Path, classes: int) -> tuple[ScorePart, dict]:
    path = folder / "targets.safetensors"
    every = Table.open(path)
    column = LOW if LOW in every.arrays else PIXELS
    table = Table.open(path, column, "label")
    _, channels, side, _ = table.arrays[column].shape
    decomposed = read_json(folder / "statistics.json") if column == LOW else {"wavelet": None, "levels": 0}
    config = {
        "role": "low",
        "column": column,
        "channels": channels,
        "side": side,
        "classes": classes if part["conditional"] else 0,
        "wavelet": decomposed["wavelet"],
        "levels": decomposed["levels"],
        "whitening": part["whitening"],
        "predicts": part["predicts"],
        "network": part["network"],
    }
    net = build_network(config)

    def blocks() -> Iterator[Tensor]:
        return (images_of(table[slice(k, k + BLOCK)][column]) for k in range(0, len(table), BLOCK))

    summary = decomposed["bands"][LOW] if column == LOW else whitening.channel_summary(blocks())
    net.whitening = whitening.fitted(part["whitening"], summary, blocks())
    return ScorePart(name, table, net, config, part), config


def _build_detail(name: str, part: dict, folder: Path, classes: int) -> tuple[details.DetailPart, dict]:
    statistics = read_json(folder / "statistics.json")
    levels = range(1, statistics["levels"] + 1)
    covers = list(levels) if part["level"] is None else [part["level"]]
    if covers[0] not in levels:
        raise ValueError(f"level {covers[0]} of a decomposition of {statistics['levels']}; allowed: 1 to {levels[-1]}")
    coarsest = min(covers)
    table = Table.open(folder / "targets.safetensors", LOW, "label", *(detail(j) for j in levels if j >= coarsest))
    config = {
        "role": "detail",
        "model": part["model"],
        "channels": statistics["channels"],
        "side": table.arrays[detail(coarsest)].shape[-1],  # the largest grid of the details that it makes
        "wavelet": statistics["wavelet"],
        "levels": statistics["levels"],
        "covers": covers,
        "standardised": part["standardised"],
        "statistics": {
            "coarse": statistics["coarse"],
            "details": [statistics["bands"][detail(j)]["std"] for j in levels],
        },
    }
    if part["model"] == "score":
        config |= {
            "classes": classes if part["conditional"] else 0,
            "predicts": part["predicts"],
            "network": part["network"],
        }
        net = build_network(config)
        return details.ScoreDetailPart(name, table, net, config, part), config
    config |= {"noisy": part["model"] == "gan", "generator": part["generator"]}
    players = {"generator": build_network(config)}
    if part["model"] == "gan":
        players["discriminator"] = details.build_discriminator(config, part["discriminator"])
    return details.PassPart(name, table, players, config, part), config


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
