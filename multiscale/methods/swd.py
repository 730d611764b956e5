"""SwD: a teacher distilled into a few steps at growing sides (scale-wise distillation, arXiv 2503.16397).

The teacher is a rectified-flow DiT; trained here it sees one random side a batch, so that it is valid at all of them.
The student shares its network. With all sides full it is the full-resolution student, its control.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from multiscale.core.device import autocast, cast_weights, default_device, resolve_precision
from multiscale.core.pixels import to_unit
from multiscale.core.storage import Table, read_json
from multiscale.core.streams import Draws, noise_of_seeds
from multiscale.networks.adapter import Beneath, adapted
from multiscale.networks.dit import DiT
from multiscale.networks.token_head import TokenHead
from multiscale.processes import flow
from multiscale.processes.distillation import FakeScore, StudentPart
from multiscale.processes.distribution import clean
from multiscale.sampling import Trace
from multiscale.scales.residual import per_channel
from multiscale.scales.upscaling import noisy
from multiscale.training.part import Data, Nets, Part

if TYPE_CHECKING:  # importing diffusers takes seconds that training a part has no use for
    from multiscale.autoencoder import Codec


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


def solved(net: nn.Module, null: int, shape: tuple[int, ...], seeds: list[int], labels: Tensor, solver: dict, watch):
    """Normalised latents (N, *shape) that a teacher makes at a side; `watch` is called with the state of each step."""
    velocity = flow.guided(lambda x, t, c: net(x, t, c).float(), labels, null, solver["cfg"])
    x = noise_of_seeds(seeds, "teacher", shape).to(labels.device)
    return flow.SOLVERS[solver["method"]](velocity, x, solver["steps"], watch)


class LatentSampler:
    """What the samplers of teacher and student share: a network on its device, and latents to images."""

    def __init__(self, name: str, net: DiT, config: dict, codec: Codec, precision: str):
        self.device = default_device()
        self.precision = resolve_precision(precision, self.device)
        self.net = cast_weights(net.eval().requires_grad_(False), self.precision).to(self.device)
        self.networks: dict[str, nn.Module] = {name: self.net}
        self.codec = cast_weights(codec, self.precision).to(self.device, memory_format=torch.channels_last)
        self.config = config

    @torch.inference_mode()
    def __call__(self, seeds: list[int], labels: Tensor, trace: Trace | None = None) -> Tensor:
        def watch(z: Tensor) -> None:
            if trace is not None:
                image = self._image(z)
                trace(f"{image.shape[-1]} px", image)

        with autocast(self.precision, self.device):
            return self._image(self.latents(seeds, labels.to(self.device), watch))

    def _image(self, z: Tensor) -> Tensor:
        shift, scale = per_channel(self.config["latent_shift"]).to(z), per_channel(self.config["latent_scale"]).to(z)
        return to_unit(self.codec.decode(z * scale + shift))


class TeacherSampler(LatentSampler):
    """The teacher's ODE, guided, at the full side."""

    def __init__(self, net: DiT, config: dict, codec: Codec, solver: dict, precision: str):
        super().__init__("teacher", net, config, codec, precision)
        self.solver, self.side = solver, config["side"]

    def latents(self, seeds: list[int], labels: Tensor, watch) -> Tensor:
        shape = (self.config["channels"], self.side, self.side)
        return solved(self.net, self.net.null_label, shape, seeds, labels, self.solver, watch)


class StudentSampler(LatentSampler):
    """N steps at the sides and noise levels that the student was trained with: they come with its weights.

    Each step predicts the clean latent; between steps it is enlarged and noised anew. No guidance.
    """

    def __init__(self, net: DiT, config: dict, codec: Codec, precision: str):
        super().__init__("student", net, config, codec, precision)
        self.steps = list(zip(config["schedule"]["sides"], config["schedule"]["sigmas"]))

    def latents(self, seeds: list[int], labels: Tensor, watch) -> Tensor:
        made: Tensor | None = None
        for k, (side, sigma) in enumerate(self.steps):

            def draw(shape: tuple[int, ...], k: int = k) -> Tensor:
                return noise_of_seeds(seeds, f"step-{k}", shape).to(self.device)

            if made is None:
                x = draw((self.config["channels"], side, side))
            else:
                x = noisy(made, side, sigma, draw, self.config["upscaling"])
            t = x.new_full((len(x),), sigma)
            made = clean(x, self.net(x, t, labels), t)
            watch(made)
        return made


def load_sampler(folders: list[Path], settings: dict, codec: Codec, precision: str) -> LatentSampler:
    """The sampler of a trained teacher or student: the config beside the weights says which."""
    (folder,) = folders
    config = read_json(folder / "config.json")
    if config["role"] == "teacher":
        return TeacherSampler(*load_teacher(folder), codec, settings["solver"], precision)
    net = build_network(config)
    net.load_state_dict(load_file(folder / "model.safetensors"))
    return StudentSampler(net, config, codec, precision)
