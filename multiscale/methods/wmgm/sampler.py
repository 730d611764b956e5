"""WMGM's sampler: the coarse band by the score model, then the details level by level."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from torch import Tensor, nn

from multiscale.condition import Classes
from multiscale.core import models
from multiscale.core.streams import noise_of_seeds
from multiscale.guidance import concatenated
from multiscale.methods.wmgm import score
from multiscale.methods.wmgm.bands import detail, transform_of
from multiscale.methods.wmgm.details import DetailsConfig, ScoreDetailsConfig, generated
from multiscale.methods.wmgm.parts import CoarseConfig
from multiscale.methods.wmgm.score import ScoreSolver
from multiscale.methods.wmgm.score_net import ScoreNet
from multiscale.methods.wmgm.settings import WMGMMethod
from multiscale.networks.autoencoder import Codec
from multiscale.sampling import NetworkSampler, Trace

Maker = tuple[DetailsConfig | ScoreDetailsConfig, nn.Module]


class WMGMSampler(NetworkSampler):
    """x_J from the score model; for j = J ... 1: d_j given x_j, x_{j-1} = merge(x_j, d_j); x_0 is clipped to [0, 1].

    d_j is one pass of a generator over x_j and noise, which counts as a network call, or comes from a score model.
    makers: models of details, which together make each level once.
    """

    def __init__(
        self, config: CoarseConfig, net: ScoreNet, makers: Sequence[Maker], settings: WMGMMethod, precision: str
    ):
        networks: dict[str, nn.Module] = {"coarse": net}
        for made, maker in makers:
            networks["-".join(["details", *(map(str, made.covers) if len(makers) > 1 else ())])] = maker
        super().__init__(networks, precision)
        self.config, self.net, self.transform = config, net, transform_of(config.wavelet)
        self.makers = {level: maker for maker in makers for level in maker[0].covers}
        self.solver, self.detail_solver = settings.solver, settings.detail_solver or settings.solver

    def images(self, seeds: list[int], labels: Tensor, trace: Trace | None) -> Tensor:
        x = self.coarse_band(seeds, labels, trace)
        for level in range(self.config.levels, 0, -1):
            x = self.transform.merge(x, self.detail_bands(x, level, seeds, labels))
            if trace is not None:
                trace(*self.picture(x, level - 1))
        return x.clamp(0, 1)

    def coarse_band(self, seeds: list[int], labels: Tensor, trace: Trace | None = None) -> Tensor:
        """x_J (N, C, h, h): `score.solve` in whitened coordinates."""
        config, undo = self.config, self.net.whitening.undo

        def watch(z: Tensor) -> None:
            if trace is not None:
                trace(*self.picture(undo(z), config.levels))

        shape, condition = (config.channels, config.resolution, config.resolution), Classes(config.classes)(labels)
        return undo(score.solve(self.net, condition, seeds, "low", shape, self.solver, self.device, watch))

    def detail_bands(self, x: Tensor, level: int, seeds: list[int], labels: Tensor) -> Tensor:
        """d_level given x_level, from the noise of the seeds."""
        return detail_bands(self.makers[level], x, level, seeds, labels, self.detail_solver)

    def picture(self, x: Tensor, level: int) -> tuple[str, Tensor]:
        """x_level as a small image in [0, 1]."""
        return f"{x.shape[-1]} px", (x / self.transform.gain**level).clamp(0, 1)


def detail_bands(maker: Maker, x: Tensor, level: int, seeds: list[int], labels: Tensor, solver: ScoreSolver) -> Tensor:
    """d_level given x_level, from the noise of the seeds; `solver` is for details made by a score model."""
    config, net = maker
    image, stream = config.levels.condition(x, level), detail(level)
    if isinstance(config, DetailsConfig):
        shape = tuple(image.shape[1:])
        noise = noise_of_seeds(seeds, stream, shape, x.device) if config.noisy else None
        made = generated(net, image, noise)
    else:
        shape = config.levels.details[0].channels, *image.shape[2:]
        network, condition = concatenated(net, image), Classes(config.classes)(labels)
        made = score.solve(network, condition, seeds, stream, shape, solver, x.device)
    return config.levels.decode(made, level)


def load_sampler(folders: Sequence[Path], settings: WMGMMethod, codec: Codec, precision: str) -> WMGMSampler:
    """The sampler of the trained parts in `folders`, in any order; its images are pixels, which need no codec.

    Raises as `sampler_of` does.
    """
    found = [(folder, config_of(models.about(folder).get("role"))) for folder in folders]
    configs = [(folder, models.config(folder, kind)) for folder, kind in found]
    parts = [(config, models.load_weights(config.build(), folder)) for folder, config in configs]
    return sampler_of(parts, settings, precision, str(folders[0].parent))


def config_of(role: object) -> type[CoarseConfig] | type[DetailsConfig] | type[ScoreDetailsConfig]:
    """The config of a model in this role."""
    return DetailsConfig if role == "details" else ScoreDetailsConfig if role == "score-details" else CoarseConfig


def sampler_of(
    parts: Sequence[tuple[CoarseConfig | DetailsConfig | ScoreDetailsConfig, nn.Module]],
    settings: WMGMMethod,
    precision: str,
    place: str,
) -> WMGMSampler:
    """The sampler of networks in memory, in any order; `place` is where they come from.

    Raises ForeignModel where they are not one coarse model and details of each level once.
    """
    coarse = [(config, cast(ScoreNet, net)) for config, net in parts if isinstance(config, CoarseConfig)]
    makers: list[Maker] = [(config, net) for config, net in parts if not isinstance(config, CoarseConfig)]
    makers.sort(key=lambda maker: maker[0].covers, reverse=True)
    levels = [level for made, _ in makers for level in made.covers]
    wanted = range(1, coarse[0][0].levels + 1) if coarse else []
    if len(coarse) != 1 or sorted(levels) != list(wanted):
        raise models.ForeignModel(
            f"{place}: {len(coarse)} coarse models and details of the levels {levels} are not allowed; "
            f"allowed: 1 and each of {list(wanted)} once"
        )
    return WMGMSampler(*coarse[0], makers, settings, precision)
