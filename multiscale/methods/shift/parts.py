"""The part of the resolution shift: the network of its teacher, which no step of a training changes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import nn

from multiscale import flow
from multiscale.condition import Conditioner, conditioner_of
from multiscale.core import models
from multiscale.core.models import ModelConfig
from multiscale.core.normalisation import Normalisation
from multiscale.core.storage import Table, read_json
from multiscale.core.streams import Draws
from multiscale.methods.shift.schedule import Schedule
from multiscale.methods.shift.settings import Shifted
from multiscale.networks import families
from multiscale.training.part import Batch, Data, Loss, Nets, Part


class ShiftConfig(ModelConfig):
    """The network of a teacher, and at which resolutions it is sampled."""

    kind: Literal["shift"] = "shift"
    role: Literal["teacher"] = "teacher"
    channels: int
    """of the latents"""
    classes: int
    latent: Normalisation
    schedule: Schedule
    """its resolutions are those of the latents"""
    network: families.Network

    def build(self) -> nn.Module:
        """The network with random weights."""
        return families.build(self.network, self.channels, self.classes)


class ShiftPart(Part):
    """Measures the teacher's loss at the full resolution, in `column`, and learns nothing from it."""

    config: ShiftConfig

    def __init__(
        self, name: str, data: Data, net: nn.Module, config: ShiftConfig, column: str, conditioner: Conditioner
    ):
        super().__init__(name, data, {"net": net}, config)
        self.column, self.conditioner = column, conditioner

    def loss(self, network: str, nets: Nets, batch: Batch, draws: Draws) -> Loss:
        """The loss, whose gradient is zero; the history counts no image, since none is learnt from."""
        given = self.conditioner(batch["label"]).given
        loss = flow.loss(lambda x, t: nets["net"](x, t, *given), batch[self.column], draws, "uniform")
        return loss.detach() + 0 * loss, {"images": loss.new_zeros(())}


def build_student(name: str, settings: Shifted, folder: Path, teacher: Path) -> ShiftPart:
    """The trained teacher in `teacher`, of the pyramid in `folder`, with the schedule on its latents."""
    about, grids = models.about(teacher), read_json(folder / "statistics.json")["grids"]
    schedule = settings.schedule
    on_latents = schedule.model_copy(update={"resolutions": [grids[str(each)] for each in schedule.resolutions]})
    given = {key: about[key] for key in ("channels", "classes", "latent", "network")}
    config = ShiftConfig.model_validate(given | {"schedule": on_latents.model_dump()})
    column = f"z{schedule.resolutions[-1]}"
    table = Table.open(folder / "targets.safetensors", "label", column)
    net = models.load_weights(config.build(), teacher)
    return ShiftPart(name, table, net, config, column, conditioner_of(folder, config.classes))
