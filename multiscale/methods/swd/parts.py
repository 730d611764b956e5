"""SwD: a teacher distilled into a few steps at growing sides (scale-wise distillation, arXiv 2503.16397).

The teacher is a rectified-flow DiT; trained here it sees one random side a batch, so that it is valid at all of them.
The student shares its network. With all sides full it is the full-resolution student, its control.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from multiscale import flow
from multiscale.core.pixels import per_channel
from multiscale.core.storage import Table, read_json
from multiscale.core.streams import Draws
from multiscale.methods.swd.adapter import Beneath, adapted
from multiscale.methods.swd.student import FakeScore, StudentPart
from multiscale.methods.swd.token_head import TokenHead
from multiscale.networks.dit import DiT
from multiscale.training.part import Data, Nets, Part


class TeacherPart(Part):
    """The flow at one random side a batch."""

    def __init__(self, name: str, data: Data, net: DiT, columns: list[str], part: dict):
        super().__init__(name, data, {"net": net})
        self.columns, self.null = columns, net.null_label
        self.label_dropout, self.times = part["label_dropout"], part["times"]

    def loss(self, player: str, nets: Nets, batch: dict[str, Tensor], draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
        data = batch[self.columns[draws.choice("side", len(self.columns))]]
        labels = torch.where(draws.uniform("label") < self.label_dropout, self.null, batch["label"])
        return flow.loss(lambda x, t: nets["net"](x, t, labels), data, draws, self.times), {}


def build_network(config: dict) -> DiT:
    """The DiT of a config, a teacher's or a student's."""
    channels = config["channels"]
    return DiT(channels, channels, classes=config["classes"], **config["network"])


def build_part(name: str, part: dict, folder: Path, classes: int) -> tuple[TeacherPart, dict]:
    """The teacher `part` (its params section) on the pyramid in `folder`."""
    statistics = read_json(folder / "statistics.json")
    config = {
        "role": "teacher",
        "channels": len(statistics["shift"]),
        "side": max(statistics["grids"].values()),  # of the latents at the full side
        "classes": classes,
        "latent_shift": statistics["shift"],
        "latent_scale": statistics["scale"],
        "network": part["network"],
    }
    columns = [f"z{side}" for side in statistics["grids"]]
    table = Table.open(folder / "targets.safetensors", "label", *columns)
    net = build_network(config)
    return TeacherPart(name, table, net, columns, part), config


def load_teacher(folder: Path) -> tuple[DiT, dict]:
    """The network and config of a trained teacher: one made here, or a DiT that MSF trained as its one scale.

    Raises ValueError for a model of another class.
    """
    config = read_json(folder / "config.json")
    if config.get("index") == 0 and len(config["sides"]) == 1:  # MSF normalises its targets once more
        shift, scale = per_channel(config["latent_shift"]), per_channel(config["latent_scale"])
        config = config | {
            "role": "teacher",
            "channels": len(config["mean"]),
            "side": config["sides"][0],
            "latent_shift": (shift + scale * per_channel(config["mean"])).flatten().tolist(),
            "latent_scale": (scale * per_channel(config["std"])).flatten().tolist(),
        }
    if config.get("role") != "teacher":
        raise ValueError(f"{folder} is no teacher; allowed: a DiT of one scale (kind msf), or a teacher of kind swd")
    net = build_network(config)
    net.load_state_dict(load_file(folder / "model.safetensors"))
    return net, config


def build_student(name: str, section: dict, folder: Path, teacher_folder: Path) -> tuple[StudentPart, dict]:
    """The student of a params section on the pyramid in `folder`; generator and fake score start as the teacher."""
    statistics = read_json(folder / "statistics.json")
    net, about = load_teacher(teacher_folder)
    sides = section["schedule"]["sides"]
    config = {
        "role": "student",
        **{key: about[key] for key in ("channels", "classes", "latent_shift", "latent_scale", "network")},
        "schedule": {
            "sides": [statistics["grids"][str(side)] for side in sides],  # of the latents
            "sigmas": section["schedule"]["sigmas"],
        },
        "upscaling": section["upscaling"],
    }
    rank = section["lora_rank"]
    players: dict[str, nn.Module] = {}
    if section["dmd"]["weight"] or section["gan"]["weight"]:
        own = copy.deepcopy(net)
        head = TokenHead(about["network"]["width"]) if section["gan"]["weight"] else None
        players["fake"] = FakeScore(adapted(own, rank) if rank else own, head, section["block"])
    if rank:
        players["generator"] = adapted(net, rank)
        teacher = Beneath(players["generator"])
    else:
        players["generator"] = copy.deepcopy(net)
        teacher = net.eval().requires_grad_(False)
    table = Table.open(folder / "targets.safetensors", "label", *sorted({f"z{side}" for side in sides}))
    bring = renormalised(statistics["shift"], statistics["scale"], about["latent_shift"], about["latent_scale"])
    return StudentPart(name, table, players, teacher, net.null_label, bring, section), config


def renormalised(shift: list[float], scale: list[float], new_shift: list[float], new_scale: list[float]):
    """Takes latents from one normalisation to another."""
    gain = per_channel(scale) / per_channel(new_scale)
    offset = (per_channel(shift) - per_channel(new_shift)) / per_channel(new_scale)
    return lambda z: z * gain.to(z) + offset.to(z)
