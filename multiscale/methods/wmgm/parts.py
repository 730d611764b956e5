"""WMGM: a score model for the coarse wavelet band, one forward pass a level for the details (arXiv 2411.09356).

p(x_0) = p(x_J) prod_j p(d_j | x_j), the factorisation of WSGM (arXiv 2208.05003). Parts have a role: 'coarse' is the
score model of x_J; 'details' makes the d_j in one pass, 'score-details' by diffusion (WSGM). The details have one
network for every level or one a level, from wavelets or from pixels. Without details, on the images themselves, this is
the control SGM (arXiv 2011.13456).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from multiscale.condition import Classes
from multiscale.core.models import ModelConfig
from multiscale.core.moments import Moments
from multiscale.core.normalisation import Normalisation
from multiscale.core.storage import Table, read_json
from multiscale.core.streams import Draws, Held
from multiscale.methods.wmgm import details, score
from multiscale.methods.wmgm.bands import LOW, PIXELS, detail
from multiscale.methods.wmgm.score import Predicts
from multiscale.methods.wmgm.score_net import ScoreNet
from multiscale.methods.wmgm.settings import CoarsePart, DetailsPart, ScoreDetailsPart
from multiscale.methods.wmgm.whitening import Kind, fully_whitened, scaled, unfitted
from multiscale.networks.unet import UNetNetwork
from multiscale.training.part import Batch, Loss, Nets, Part

BLOCK = 1024


class CoarseConfig(ModelConfig):
    """The score model of the coarse band, or of the images (SGM)."""

    kind: Literal["wmgm"] = "wmgm"
    role: Literal["coarse"] = "coarse"
    channels: int
    resolution: int
    """of the coarse band"""
    wavelet: str
    """name of the transform; without levels it has no effect"""
    levels: int
    """of the transform; 0: the images themselves"""
    classes: int
    whitening: Kind
    predicts: Predicts
    network: UNetNetwork

    def build(self) -> ScoreNet:
        """The network with random weights, its whitening still to be fitted or loaded."""
        net = ScoreNet(self.channels, self.channels, self.resolution, self.classes, self.network, self.predicts)
        net.whitening = unfitted(self.whitening, self.channels, self.resolution)
        return net


class CoarseScore(Part):
    """The score model of the coarse band, or of the images themselves (SGM), whitened."""

    config: CoarseConfig

    def __init__(self, name: str, table: Table, column: str, config: CoarseConfig, settings: CoarsePart):
        self.net = config.build()
        super().__init__(name, table, {"net": self.net}, config)
        self.column, self.label_dropout, self.conditioner = column, settings.label_dropout, Classes(config.classes)
        self.weight = score.weight_of(settings.predicts, settings.snr_cap)

    def loss(self, network: str, nets: Nets, batch: Batch, draws: Draws) -> Loss:
        """`score.loss` of the whitened band."""
        condition = self.conditioner(batch["label"]).dropped(self.label_dropout, draws)
        data = self.net.whitening(images_of(batch[self.column]))
        return score.loss(lambda x, t: nets["net"](x, t, *condition.given), data, draws, self.weight), {}

    def errors(self, net: nn.Module, batch: Batch, held: Held) -> Tensor:
        """`score.errors` of the whitened band."""
        condition, data = self.conditioner(batch["label"]), self.net.whitening(images_of(batch[self.column]))
        return score.errors(lambda x, t: net(x, t, *condition.given), data, held)


def images_of(rows: Tensor) -> Tensor:
    """A stored band as it is, stored uint8 pixels as images in [0, 1]."""
    return rows.float() / 255 if rows.dtype == torch.uint8 else rows


def build_part(name: str, settings: CoarsePart | DetailsPart | ScoreDetailsPart, folder: Path) -> Part:
    """The part on the decomposition in `folder`. Raises ValueError for a level that the decomposition lacks."""
    return _coarse(name, settings, folder) if isinstance(settings, CoarsePart) else _details(name, settings, folder)


def _coarse(name: str, settings: CoarsePart, folder: Path) -> CoarseScore:
    path, about = folder / "targets.safetensors", read_json(folder / "statistics.json")
    column = LOW if "levels" in about else PIXELS
    table = Table.open(path, column, "label")
    _, channels, resolution, _ = table.arrays[column].shape
    config = CoarseConfig(
        channels=channels,
        resolution=resolution,
        wavelet=about.get("wavelet", PIXELS),
        levels=about.get("levels", 0),
        classes=about["classes"] if settings.conditional else 0,
        whitening=settings.whitening,
        predicts=settings.predicts,
        network=settings.network,
    )
    part = CoarseScore(name, table, column, config, settings)
    blocks = (images_of(table[slice(k, k + BLOCK)][column]) for k in range(0, len(table), BLOCK))
    if settings.whitening == "full":
        part.net.whitening = fully_whitened((channels, resolution, resolution), blocks)
    elif column == LOW:
        part.net.whitening = scaled(_normalisation(about["coarse"][-1]))
    else:
        moments = Moments()
        for block in blocks:
            moments.add(block)
        part.net.whitening = scaled(Normalisation(shift=moments.mean(), scale=moments.std()))
    return part


def _details(name: str, settings: DetailsPart | ScoreDetailsPart, folder: Path) -> details.Details:
    about = read_json(folder / "statistics.json")
    every = range(1, about["levels"] + 1)
    covers = list(every) if settings.level is None else [settings.level]
    if covers[0] not in every:
        raise ValueError(f"level {covers[0]} of a decomposition of {len(every)}; allowed: 1 to {every[-1]}")
    needed = [detail(j) for j in every if j >= covers[0]]  # the finer bands have no part in it
    table = Table.open(folder / "targets.safetensors", LOW, "label", *needed)
    stds = [about["bands"][detail(j)]["std"] for j in every]
    levels = details.Levels(
        wavelet=about["wavelet"],
        standardised=settings.standardised,
        coarse=[_normalisation(entry) for entry in about["coarse"]],
        details=[Normalisation(shift=[0.0] * len(std), scale=std) for std in stds],
    )
    if isinstance(settings, DetailsPart):
        noisy = settings.discriminator is not None
        generator = details.DetailsConfig(covers=covers, levels=levels, noisy=noisy, generator=settings.generator)
        return details.GeneratedDetails(name, table, generator, settings)
    config = details.ScoreDetailsConfig(
        covers=covers,
        levels=levels,
        resolution=table.arrays[needed[0]].shape[-1],
        classes=about["classes"] if settings.conditional else 0,
        predicts=settings.predicts,
        network=settings.network,
    )
    return details.DiffusedDetails(name, table, config, settings)


def _normalisation(summary: dict[str, list[float]]) -> Normalisation:
    return Normalisation(shift=summary["mean"], scale=summary["std"])
