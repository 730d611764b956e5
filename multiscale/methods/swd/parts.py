"""SwD's parts: a teacher, and its distillation into a few steps at growing resolutions (arXiv 2503.16397).

The teacher is a rectified flow that sees one random resolution a batch, so that it can generate at all of them, or a
published text-to-image model, which is fetched. The student shares its network. With all resolutions full it is the
full-resolution student, the control.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from multiscale import flow
from multiscale.condition import Conditioner, conditioner_of
from multiscale.core import models
from multiscale.core.normalisation import Normalisation
from multiscale.core.pixels import per_channel
from multiscale.core.storage import Table, read_json
from multiscale.core.streams import Draws, Held
from multiscale.methods.swd.adapter import LAYERS, Beneath, adapted
from multiscale.methods.swd.config import LoraConfig, Statistics, StudentConfig, TeacherConfig
from multiscale.methods.swd.settings import PublishedTeacher, Student, Teacher
from multiscale.methods.swd.student import FakeScore, StudentPart, TokenHead
from multiscale.networks import families
from multiscale.networks.dit import DiTNetwork
from multiscale.networks.published.network import Published, PublishedNetwork, normalisation
from multiscale.networks.published.sd3 import SD3
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
        self.views = len(columns)

    def odds(self) -> Mapping[str, Mapping[int, int]]:
        return {"side": dict.fromkeys(range(len(self.columns)), 1)}

    def loss(self, network: str, nets: Nets, batch: Batch, draws: Draws) -> Loss:
        latents = batch[self.columns[draws.choice("side", len(self.columns))]]  # the stream's name decides its numbers
        given = self.conditioner(batch["label"]).dropped(self.settings.label_dropout, draws).given
        return flow.loss(lambda x, t: nets["net"](x, t, *given), latents, draws, self.settings.timesteps), {}

    def errors(self, net: nn.Module, batch: Batch, held: Held) -> Tensor:
        """`flow.errors` at one of the resolutions."""
        given = self.conditioner(batch["label"]).given
        return flow.errors(lambda x, t: net(x, t, *given), batch[self.columns[held.view]], held)


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
    net = config.build()
    if isinstance(net, SD3):
        net.initialise()
    return TeacherPart(name, table, net, config, settings, columns, conditioner_of(folder, config.classes))


def publish(settings: PublishedTeacher, source: Path, folder: Path, out: Path) -> None:
    """Writes a published network, from the folder of a diffusers pipeline, as a teacher on the pyramid in `folder`.

    Its weights are cast to bf16, and its latents are those that the autoencoder's own config asks for. Raises
    ForeignModel for a folder that holds another network.
    """
    config = published_config(settings, folder)
    models.save(out, settings.network.load(source, torch.bfloat16).state_dict(), config)


def published_config(settings: PublishedTeacher, folder: Path) -> TeacherConfig:
    """The config of a published network as a teacher on the pyramid in `folder`."""
    statistics, path = Statistics.of(folder), folder / models.AUTOENCODER / models.CONFIG
    latent = normalisation(read_json(path))
    if latent.channels != settings.network.channels:
        allowed = f"{settings.network.channels}, the channels of the network's latents"
        raise models.ForeignModel(f"{path}: latent_channels: {latent.channels} is not allowed; allowed: {allowed}")
    return TeacherConfig(
        role="published",
        channels=latent.channels,
        resolution=max(statistics.grids.values()),
        classes=statistics.classes,
        latent=latent,
        network=settings.network,
    )


def load_teacher(folder: Path) -> tuple[nn.Module, TeacherConfig]:
    """The network and config of a teacher: one of SwD, or a DiT that MSF trained at one resolution.

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
    elif kind == "swd" and role in ("teacher", "published"):
        config = models.config(folder, TeacherConfig)
    else:
        raise ValueError(f"{folder} is no teacher; allowed: a DiT of one scale (kind msf), or a teacher of kind swd")
    if config.role == "published":
        return models.load_weights(empty(config), folder, assign=True), config
    return models.load_weights(config.build(), folder), config


def empty(config: TeacherConfig) -> nn.Module:
    """The network of a teacher without weights: of billions of numbers no random ones are made first."""
    with torch.device("meta"):
        return config.build().to(torch.bfloat16)


def renormalised(old: Normalisation, new: Normalisation) -> Callable[[Tensor], Tensor]:
    """Takes latents from one normalisation to another."""
    gain = per_channel(old.scale) / per_channel(new.scale)
    offset = (per_channel(old.shift) - per_channel(new.shift)) / per_channel(new.scale)
    return lambda z: z * gain.to(z) + offset.to(z)


def build_student(name: str, settings: Student, folder: Path, teacher: Path) -> StudentPart:
    """The student on the pyramid in `folder`; generator and fake score start as the trained teacher.

    Raises ValueError for a model that is no teacher.
    """
    net, about = load_teacher(teacher)
    beneath = (f"../../{teacher.parent.name}/{teacher.name}", models.digest(teacher))
    return student_of(name, settings, folder, net, about, beneath)


def student_of(
    name: str, settings: Student, folder: Path, net: nn.Module, about: TeacherConfig, beneath: tuple[str, str]
) -> StudentPart:
    """The student of a teacher's network; `beneath`: the teacher's folder from the student's, and its digest."""
    statistics = Statistics.of(folder)
    resolutions, rank, layers = settings.schedule.resolutions, settings.lora_rank, getattr(net, "adapted", LAYERS)
    given = {key: getattr(about, key) for key in ("channels", "classes", "latent", "network")}
    given |= {"upscaling": settings.upscaling, "schedule": settings.schedule.on(statistics.grids)}
    config: StudentConfig | LoraConfig
    if rank and isinstance(about.network, PublishedNetwork):
        config = LoraConfig(rank=rank, teacher=beneath[0], digest=beneath[1], **given)
    else:
        config = StudentConfig(**given)
    if isinstance(net, Published) and about.role == "published":
        net.recompute()  # of billions of numbers the activations alone would fill a GPU
    networks: dict[str, nn.Module] = {}
    if settings.dmd.weight or settings.gan.weight:
        own = copy.deepcopy(net)
        head = TokenHead(families.width(about.network, settings.block)) if settings.gan.weight else None
        networks["fake"] = FakeScore(adapted(own, rank, layers) if rank else own.float(), head, settings.block)
    frozen: nn.Module | Beneath
    if rank:
        networks["generator"] = adapted(net, rank, layers)
        frozen = Beneath(networks["generator"])
    else:
        networks["generator"] = copy.deepcopy(net).float()  # what is trained is never bf16
        frozen = net.eval().requires_grad_(False)
    columns = sorted({f"z{resolution}" for resolution in resolutions})
    table = Table.open(folder / "targets.safetensors", "label", *columns)
    renormalise = renormalised(statistics.latent, about.latent)
    conditioner = conditioner_of(folder, config.classes)
    return StudentPart(name, table, networks, config, settings, frozen, renormalise, conditioner)
