"""SwD's samplers: the teacher's flow, and the few steps of a student (Algorithm 2)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from multiscale import flow
from multiscale.core.device import autocast, cast_weights, default_device, resolve_precision
from multiscale.core.pixels import per_channel, to_unit
from multiscale.core.storage import read_json
from multiscale.core.streams import noise_of_seeds
from multiscale.methods.swd.losses import clean
from multiscale.methods.swd.parts import build_network, load_teacher
from multiscale.methods.swd.upscaling import noisy
from multiscale.networks.dit import DiT
from multiscale.sampling import Trace

if TYPE_CHECKING:  # importing diffusers takes seconds that training a part has no use for
    from multiscale.networks.autoencoder import Codec


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
