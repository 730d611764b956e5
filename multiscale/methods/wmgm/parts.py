"""WMGM: a score model for the coarse wavelet band, one forward pass a level for the details (arXiv 2411.09356).

p(x_0) = p(x_J) prod_j p(d_j | x_j). Parts have a role: 'low' is the score model of x_J; 'detail' makes the d_j by a
'gan', a 'regression' or a 'score' model (WSGM), one network for every level or one a level, from wavelets or from
pixels. Without any detail part, on the images themselves, this is SGM (arXiv 2011.13456), its control.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from multiscale.core.storage import Table, read_json
from multiscale.core.streams import Draws
from multiscale.methods.wmgm import details, score, whitening
from multiscale.methods.wmgm.bands import LOW, PIXELS, detail
from multiscale.methods.wmgm.score_net import ScoreNet
from multiscale.training.part import Data, Nets, Part

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
