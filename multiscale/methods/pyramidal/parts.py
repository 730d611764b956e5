"""The part of pyramidal flow matching: a DiT that learns the velocity of all segments (arXiv 2410.05954)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from multiscale import flow
from multiscale.condition import Classes
from multiscale.core.models import ModelConfig
from multiscale.core.normalisation import Normalisation
from multiscale.core.storage import Table, read_json
from multiscale.core.streams import Draws, Held
from multiscale.methods.pyramidal import path
from multiscale.methods.pyramidal.settings import PyramidalPart, resolutions
from multiscale.networks.dit import DiT, DiTNetwork
from multiscale.training.part import Batch, Data, Loss, Nets, Part


class PyramidalConfig(ModelConfig):
    """The DiT, and the levels of noise at which the resolution doubles."""

    kind: Literal["pyramidal"] = "pyramidal"
    role: Literal["flow"] = "flow"
    channels: int
    """of the latents"""
    resolution: int
    """of the latents at the end"""
    classes: int
    latent: Normalisation
    jumps: list[float]
    network: DiTNetwork

    def build(self) -> DiT:
        """The network with random weights."""
        return self.network.build(self.channels, self.channels, self.classes)


class FlowPart(Part):
    """Flow matching on one segment a batch, each as often.

    columns: of the data, the latents z_0 ... z_K of all segments; of the last one alone, where z_k are its means.
    """

    config: PyramidalConfig

    def __init__(
        self, name: str, data: Data, net: DiT, config: PyramidalConfig, settings: PyramidalPart, columns: list[str]
    ):
        super().__init__(name, data, {"net": net}, config)
        self.settings, self.columns, self.conditioner = settings, columns, Classes(config.classes)
        self.segments = path.segments(config.jumps)
        self.views = len(self.segments)

    def odds(self) -> Mapping[str, Mapping[int, int]]:
        return {"segment": dict.fromkeys(range(len(self.segments)), 1)}

    def loss(self, network: str, nets: Nets, batch: Batch, draws: Draws) -> Loss:
        k, latents = draws.choice("segment", len(self.segments)), self._latents(batch)
        noise = draws.normal("noise", *latents[k].shape[1:])
        u = flow.draw_times(draws, self.settings.timesteps)
        given = self.conditioner(batch["label"]).dropped(self.settings.label_dropout, draws).given
        return self._squares(nets["net"], latents, k, noise, u, given).mean(), {}

    def errors(self, net: nn.Module, batch: Batch, held: Held) -> Tensor:
        """The loss of each image on one of the segments, whose levels are the times."""
        latents, given = self._latents(batch), self.conditioner(batch["label"]).given
        noise = held.normal("noise", *latents[held.view].shape[1:])
        return self._squares(net, latents, held.view, noise, held.levels, given).flatten(1).mean(1)

    def _latents(self, batch: Batch) -> list[Tensor]:
        """z_0 ... z_K."""
        latents = [batch[column] for column in self.columns]
        return latents if len(latents) == len(self.segments) else path.pyramid(latents[0], len(self.segments))

    def _squares(
        self, net: nn.Module, latents: list[Tensor], k: int, noise: Tensor, u: Tensor, given: tuple[Tensor, ...]
    ) -> Tensor:
        start, end = self.segments[k].points(latents[k], latents[k - 1] if k else None, noise)
        velocity = net(flow.interpolate(end, start, u), self.segments[k].level(u), *given)
        squares: Tensor = (velocity.float() - (start - end)).square()
        return squares


def build_part(name: str, settings: PyramidalPart, folder: Path) -> FlowPart:
    """The part on the pyramid in `folder`."""
    statistics = read_json(folder / "statistics.json")
    full = max(map(int, statistics["grids"]))
    latent = Normalisation(**statistics["latent"])
    config = PyramidalConfig(
        channels=latent.channels,
        resolution=statistics["grids"][str(full)],
        classes=statistics["classes"],
        latent=latent,
        jumps=settings.jumps,
        network=settings.network,
    )
    sides = resolutions(full, settings.jumps) if settings.coarse == "pixels" else [full]
    columns = [f"z{side}" for side in sides]
    table = Table.open(folder / "targets.safetensors", "label", *columns)
    return FlowPart(name, table, config.build(), config, settings, columns)
