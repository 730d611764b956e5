"""SwD's samplers: the teacher's flow, and the few steps of a student."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from multiscale import flow, solvers
from multiscale.condition import Classes, Condition, Conditioner, conditioner_of
from multiscale.core import models
from multiscale.core.streams import noise_of_seeds
from multiscale.guidance import guided_by
from multiscale.latent import LatentSampler
from multiscale.methods.swd.config import LoraConfig, NetworkConfig, StudentConfig, TeacherConfig
from multiscale.methods.swd.lora import load_lora
from multiscale.methods.swd.losses import clean
from multiscale.methods.swd.parts import load_teacher
from multiscale.methods.swd.settings import SwDMethod
from multiscale.methods.swd.upscaling import noisy
from multiscale.networks.autoencoder import Codec
from multiscale.networks.published.network import Published
from multiscale.sampling import Trace


def solved(
    net: nn.Module,
    shape: tuple[int, ...],
    seeds: list[int],
    condition: Condition,
    solver: flow.Solver,
    device: torch.device,
    watch: solvers.Watch = solvers.ignore,
) -> Tensor:
    """Normalised latents (N, *shape) that a teacher generates; `watch` is called with the state after each step."""
    velocity = guided_by(solver, net, condition)
    return flow.solve(velocity, noise_of_seeds(seeds, "teacher", shape, device), solver, watch)


class SwDSampler(LatentSampler):
    """What the samplers of teacher and student share: from latents to images.

    conditioner: makes the conditions of the labels; None: they are classes.
    """

    def __init__(
        self, net: nn.Module, config: NetworkConfig, codec: Codec, precision: str, conditioner: Conditioner | None
    ):
        super().__init__({config.role: net}, config.latent, conditioner or Classes(config.classes), codec, precision)
        self.net = net

    def images(self, seeds: list[int], labels: Tensor, trace: Trace | None) -> Tensor:
        return self.decoded(self.latents(seeds, self.conditioner(labels), lambda z: self.show(z, trace)))

    def latents(self, seeds: list[int], condition: Condition, watch: solvers.Watch) -> Tensor:
        """Normalised latents (N, c, h, h); `watch` is called after each step."""
        raise NotImplementedError


class TeacherSampler(SwDSampler):
    """The teacher's ODE at the full resolution, with classifier-free guidance."""

    def __init__(
        self,
        net: nn.Module,
        config: TeacherConfig,
        codec: Codec,
        solver: flow.Solver,
        precision: str,
        conditioner: Conditioner | None = None,
    ):
        super().__init__(net, config, codec, precision, conditioner)
        self.solver, self.shape = solver, (config.channels, config.resolution, config.resolution)

    def latents(self, seeds: list[int], condition: Condition, watch: solvers.Watch) -> Tensor:
        return solved(self.net, self.shape, seeds, condition, self.solver, self.device, watch)


class StudentSampler(SwDSampler):
    """The student's N steps, at the resolutions and noise levels that it was trained for (section 3.1).

    Each step predicts the clean latent; between steps this is enlarged and noised anew. No guidance.
    """

    def __init__(
        self,
        net: nn.Module,
        config: StudentConfig | LoraConfig,
        codec: Codec,
        precision: str,
        conditioner: Conditioner | None = None,
    ):
        super().__init__(net, config, codec, precision, conditioner)
        self.channels, self.upscaling = config.channels, config.upscaling
        self.steps = list(zip(config.schedule.resolutions, config.schedule.sigmas))

    def latents(self, seeds: list[int], condition: Condition, watch: solvers.Watch) -> Tensor:
        z = torch.zeros(len(seeds), self.channels, *[self.steps[0][0]] * 2, device=self.device)  # hidden: sigma_1 is 1
        for k, (resolution, sigma) in enumerate(self.steps):

            def draw(shape: tuple[int, ...], k: int = k) -> Tensor:
                return noise_of_seeds(seeds, f"step-{k}", shape, self.device)

            x = noisy(z, resolution, sigma, draw, self.upscaling)
            t = x.new_full((len(x),), sigma)
            z = clean(x, self.net(x, t, *condition.given), t)
            watch(z)
        return z


def load_adapted(folder: Path) -> tuple[nn.Module, LoraConfig]:
    """The teacher's network with the LoRA in a folder. Raises ForeignModel where the teacher is missing or another."""
    config = models.config(folder, LoraConfig)
    beneath = Path(os.path.normpath(folder / config.teacher))  # of a link to a folder, beside the link
    path = beneath / models.WEIGHTS
    if not path.exists() or models.digest(beneath) != config.digest:
        problem = "other weights" if path.exists() else "missing"
        allowed = f"the teacher that {folder} is a LoRA on, of SHA-256 {config.digest}"
        raise models.ForeignModel(f"{path}: {problem}; allowed: {allowed}")
    net, _ = load_teacher(beneath)
    return load_lora(folder, cast(Published, net), config.rank), config


def load_sampler(folders: Sequence[Path], settings: SwDMethod, codec: Codec, precision: str) -> SwDSampler:
    """The sampler of a trained teacher or student, whose config says which. Raises ValueError for another model."""
    (folder,) = folders
    role = models.about(folder).get("role")
    config: TeacherConfig | StudentConfig | LoraConfig
    if role == "student":
        config = models.config(folder, StudentConfig)
        net: nn.Module = models.load_weights(config.build(), folder)
    else:
        net, config = load_adapted(folder) if role == "lora" else load_teacher(folder)
    return sampler_around(net, config, settings, codec, precision, conditioner_of(folder, config.classes))


def sampler_around(
    net: nn.Module,
    config: TeacherConfig | StudentConfig | LoraConfig,
    settings: SwDMethod,
    codec: Codec,
    precision: str,
    conditioner: Conditioner | None,
) -> SwDSampler:
    """The sampler of a network in memory."""
    if isinstance(config, TeacherConfig):
        return TeacherSampler(net, config, codec, settings.solver or flow.Solver(), precision, conditioner)
    return StudentSampler(net, config, codec, precision, conditioner)
