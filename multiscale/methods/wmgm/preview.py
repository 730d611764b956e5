"""What a part of WMGM makes on its own, while it is trained."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from multiscale.methods.wmgm.details import Details
from multiscale.methods.wmgm.parts import CoarseScore
from multiscale.methods.wmgm.sampler import WMGMSampler, detail_bands
from multiscale.methods.wmgm.score import ScoreSolver
from multiscale.methods.wmgm.score_net import ScoreNet
from multiscale.methods.wmgm.settings import WMGMMethod
from multiscale.networks.autoencoder import Codec
from multiscale.sampling import NetworkSampler, Trace
from multiscale.training.part import Batch

SOLVER = ScoreSolver(name="dpm-solver++", steps=6)


class CoarseSampler(WMGMSampler):
    """The coarse band as a small image; without levels (SGM) the whole image."""

    def __init__(self, part: CoarseScore, net: ScoreNet, precision: str):
        super().__init__(part.config, net, [], WMGMMethod(kind="wmgm", solver=SOLVER), precision)

    def images(self, seeds: list[int], labels: Tensor, trace: Trace | None) -> Tensor:
        _, image = self.picture(self.coarse_band(seeds, labels, trace), self.config.levels)
        return image


class DetailsSampler(NetworkSampler):
    """The details that a part makes on the data's own coarse band: x_{j-1} of the finest level j that it makes."""

    def __init__(self, part: Details, net: nn.Module, rows: Batch, precision: str):
        super().__init__({"details": net}, precision)
        self.levels, self.covers, self.maker = part.levels, sorted(part.covers, reverse=True), (part.config, net)
        self.given = part.levels.low(rows, self.covers[0]).to(self.device)

    def images(self, seeds: list[int], labels: Tensor, trace: Trace | None) -> Tensor:
        x, transform = self.given, self.levels.transform
        for level in self.covers:
            x = transform.merge(x, detail_bands(self.maker, x, level, seeds, labels, SOLVER))
        scale: int = transform.gain ** (self.covers[-1] - 1)
        return (x / scale).clamp(0, 1)


def sampler_of(
    part: CoarseScore | Details, net: nn.Module, rows: Batch, codec: Codec, precision: str
) -> NetworkSampler:
    """The sampler of the coarse band, or that of the details on the bands in `rows`."""
    if isinstance(part, CoarseScore):
        return CoarseSampler(part, cast(ScoreNet, net), precision)
    return DetailsSampler(part, net, rows, precision)
