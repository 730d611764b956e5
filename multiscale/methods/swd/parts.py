"""SwD's parts: a teacher, and its distillation into a few steps at growing resolutions (arXiv 2503.16397).

The teacher is a rectified-flow DiT that sees one random resolution a batch, so that it can generate at all of them. The
student shares its network. With all resolutions full it is the full-resolution student, the control.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn

from multiscale import flow
from multiscale.condition import Conditioner, beside
from multiscale.core import models
from multiscale.core.normalisation import Normalisation
from multiscale.core.pixels import per_channel
from multiscale.core.storage import Table
from multiscale.core.streams import Draws
from multiscale.methods.swd.adapter import LAYERS, Beneath, adapted
from multiscale.methods.swd.config import Statistics, StudentConfig, TeacherConfig
from multiscale.methods.swd.schedule import Schedule
from multiscale.methods.swd.settings import Student, Teacher
from multiscale.methods.swd.student import FakeScore, StudentPart, TokenHead
from multiscale.networks.dit import DiTNetwork
from multiscale.training.part import Batch, Data, Loss, Nets, Part


class TeacherPart(Part):
    """Flow matching at one random resolution a batch.

    data: columns z{resolution} and label, of which `conditioner` makes what the network is called with.
    """

    config: TeacherConfig

    def __init__(
        self,
        name: str,
        data: Data,
        net: nn.Module,
        config: TeacherConfig,
        settings: Teacher,
        columns: list[str],
        conditioner: Conditioner,
    ):
        super().__init__(name, data, {"net": net}, config)
        self.settings, self.columns, self.conditioner = settings, columns, conditioner

    def loss(self, network: str, nets: Nets, batch: Batch, draws: Draws) -> Loss:
        latents = batch[self.columns[draws.choice("side", len(self.columns))]]  # the stream's name decides its numbers
        given = self.conditioner(batch["label"]).dropped(self.settings.label_dropout, draws).given
        return flow.loss(lambda x, t: nets["net"](x, t, *given), latents, draws, self.settings.timesteps), {}


def build_part(name: str, settings: Teacher, folder: Path) -> TeacherPart:
    """The teacher on the pyramid in `folder`."""
    statistics = Statistics.of(folder)
    config = TeacherConfig(
        channels=statistics.latent.channels,
        resolution=max(statistics.grids.values()),
        classes=statistics.classes,
        latent=statistics.latent,
        network=settings.network,
    )
    columns = [f"z{resolution}" for resolution in statistics.grids]
    table = Table.open(folder / "targets.safetensors", "label", *columns)
    return TeacherPart(name, table, config.build(), config, settings, columns, beside(folder, config.classes))


def load_teacher(folder: Path) -> tuple[nn.Module, TeacherConfig]:
    """The network and config of a trained teacher: one of SwD, or a DiT that MSF trained at one resolution.

    Raises ValueError for any other model.
    """
    found = models.about(folder)
    kind, role = found.get("kind"), found.get("role")
    if kind == "msf" and role == "scale" and len(found["resolutions"]) == 1:
        latent, target = (Normalisation.model_validate(found[key]) for key in ("latent", "target"))
        config = TeacherConfig(
            channels=target.channels,
            resolution=found["resolutions"][0],
            classes=found["classes"],
            latent=Normalisation(  # MSF normalises its targets once more
                shift=latent.undo(per_channel(target.shift)).flatten().tolist(),
                scale=(per_channel(latent.scale) * per_channel(target.scale)).flatten().tolist(),
            ),
            network=DiTNetwork.model_validate(found["network"]),
        )
    elif kind == "swd" and role == "teacher":
        config = models.config(folder, TeacherConfig)
    else:
        raise ValueError(f"{folder} is no teacher; allowed: a DiT of one scale (kind msf), or a teacher of kind swd")
    return models.load_weights(config.build(), folder), config


def renormalised(old: Normalisation, new: Normalisation) -> Callable[[Tensor], Tensor]:
    """Takes latents from one normalisation to another."""
    gain = per_channel(old.scale) / per_channel(new.scale)
    offset = (per_channel(old.shift) - per_channel(new.shift)) / per_channel(new.scale)
    return lambda z: z * gain.to(z) + offset.to(z)


def build_student(name: str, settings: Student, folder: Path, teacher: Path) -> StudentPart:
    """The student on the pyramid in `folder`; generator and fake score start as the trained teacher.

    Raises ValueError for a model that is no teacher.
    """
    statistics = Statistics.of(folder)
    net, about = load_teacher(teacher)
    resolutions, rank, layers = settings.schedule.resolutions, settings.lora_rank, getattr(net, "adapted", LAYERS)
    config = StudentConfig(
        channels=about.channels,
        classes=about.classes,
        latent=about.latent,
        network=about.network,
        schedule=Schedule(
            resolutions=[statistics.grids[str(resolution)] for resolution in resolutions],
            sigmas=settings.schedule.sigmas,
        ),
        upscaling=settings.upscaling,
    )
    networks: dict[str, nn.Module] = {}
    if settings.dmd.weight or settings.gan.weight:
        own = copy.deepcopy(net)
        head = TokenHead(about.network.width) if settings.gan.weight else None
        networks["fake"] = FakeScore(adapted(own, rank, layers) if rank else own, head, settings.block)
    frozen: nn.Module | Beneath
    if rank:
        networks["generator"] = adapted(net, rank, layers)
        frozen = Beneath(networks["generator"])
    else:
        networks["generator"] = copy.deepcopy(net)
        frozen = net.eval().requires_grad_(False)
    columns = sorted({f"z{resolution}" for resolution in resolutions})
    table = Table.open(folder / "targets.safetensors", "label", *columns)
    renormalise = renormalised(statistics.latent, about.latent)
    return StudentPart(name, table, networks, config, settings, frozen, renormalise, beside(folder, config.classes))
