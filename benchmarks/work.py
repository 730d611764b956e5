"""What the benchmarks of speed run: training steps, samplers and encoders of the embedded recipe, on random data.

The data have the shapes of the recipe's. Time does not depend on their values, so no `dvc repro` is needed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from multiscale.core.memory import keep_freed_memory
from multiscale.core.normalisation import Normalisation
from multiscale.core.storage import Table, write_blocks, write_json
from multiscale.flow import Solver
from multiscale.methods.msf.parts import ScaleConfig, ScalePart
from multiscale.methods.msf.sampler import MSFSampler
from multiscale.methods.ssd.parts import ScaleSpacePart
from multiscale.methods.ssd.sampler import ScaleSpaceSampler
from multiscale.methods.ssd.settings import AncestralSolver
from multiscale.methods.swd.config import TeacherConfig
from multiscale.methods.swd.parts import student_of
from multiscale.methods.swd.student import StudentPart
from multiscale.networks import autoencoder
from multiscale.networks.autoencoder import Codec
from multiscale.training.loop import Trainer
from multiscale.training.part import Part, Training
from stages.common import settings
from stages.schema import Experiment

COUNT, CLASSES = 4096, 10  # of the random images
Result = TypeVar("Result")


def recipe() -> Experiment:
    """The experiment of params.yaml, which is the embedded recipe."""
    return settings.load()


def as_stages_do(params: Experiment) -> None:
    """Sets the threads and the allocator as every stage does."""
    torch.set_num_threads(params.run.threads)
    keep_freed_memory()


def pixels(params: Experiment, count: int = COUNT) -> Tensor:
    """Random uint8 images (count, C, H, H)."""
    shape = (count, params.data.channels, params.data.resolution, params.data.resolution)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def latents(params: Experiment, count: int = COUNT) -> Tensor:
    """Random latents (count, c, h, h) of the full resolution."""
    grid = params.data.resolution // params.vae.factor
    return torch.randn(count, params.vae.latent_channels, grid, grid, generator=torch.Generator().manual_seed(0))


def labels(count: int = COUNT) -> Tensor:
    """Classes that take turns (count,)."""
    return torch.arange(count) % CLASSES


def dit_part(params: Experiment) -> ScalePart:
    """The part 'dit', class-conditional on latents."""
    section, data = params.parts["dit"], latents(params)
    unit = Normalisation(shift=[0.0] * data.shape[1], scale=[1.0] * data.shape[1])
    config = ScaleConfig(
        index=0, resolutions=[data.shape[-1]], target=unit, latent=unit, classes=CLASSES, network=section.network
    )
    table = Table({"y0": data.numpy(), "label": labels().numpy()})
    return ScalePart("dit", table, config.build(), config, section)


def unet_part(params: Experiment) -> ScaleSpacePart:
    """The part 'ddpm', without classes, and with the top block that diffusers' UNet has too."""
    section = params.parts["ddpm"]
    section = section.model_copy(update={"network": section.network.model_copy(update={"top_block": True})})
    table = Table({"pixels": pixels(params).numpy(), "label": np.zeros(COUNT, np.int64)})
    config = section.config(params.data.channels, params.data.resolution, 0)
    return ScaleSpacePart("ddpm", table, section, config)


def student_part(params: Experiment) -> StudentPart:
    """The student 'swd' of a teacher with random weights, on random latents of all resolutions of its schedule."""
    section, made = params.students["swd"], params.parts["swd-teacher"]
    grids = {str(size): size // params.vae.factor for size in params.decompose["pyramid"].resolutions}
    channels = params.vae.latent_channels
    unit = Normalisation(shift=[0.0] * channels, scale=[1.0] * channels)
    teacher = TeacherConfig(
        channels=channels, resolution=max(grids.values()), classes=CLASSES, latent=unit, network=made.network
    )
    columns = {
        f"z{size}": torch.randn(COUNT, channels, grid, grid, generator=torch.Generator().manual_seed(grid))
        for size, grid in grids.items()
    }
    with tempfile.TemporaryDirectory() as folder:
        about = {"classes": CLASSES, "latent": unit.model_dump(), "grids": grids}
        write_json(Path(folder, "statistics.json"), about)
        shapes = {name: (np.float32, tuple(x.shape)) for name, x in columns.items()} | {"label": (np.int64, (COUNT,))}
        write_blocks(Path(folder, "targets.safetensors"), shapes, [{**columns, "label": labels()}])
        part = student_of("swd", section, Path(folder), teacher.build(), teacher, ("", ""))
        part.data = Table({name: x.numpy() for name, x in columns.items()} | {"label": labels().numpy()})
    return part


def training(part: Part, params: Experiment) -> Training:
    """The training of a part in the recipe, with AdamW, as its peers."""
    return params.trained[part.name].training.model_copy(update={"optimizer": "adamw"})


def trainer(part: Part, params: Experiment) -> Callable[[], None]:
    """One training step of a part, with its batch, by the project's training loop."""
    run = Trainer(part, training(part, params), params.seed)
    for net in run.networks.values():
        net.train()

    def step() -> None:
        run.step(run.fetch(run.seen // run.training.batch))

    return step


def dit_sampler(part: ScalePart, codec: Codec, steps: int, guidance_scale: float, precision: str) -> MSFSampler:
    """The sampler of DiT, Euler steps and the decoder."""
    solver = Solver(steps=steps, guidance_scale=guidance_scale)
    return MSFSampler([part.networks["net"]], [part.config], [solver], codec, precision)


def unet_sampler(part: ScaleSpacePart, steps: int, precision: str) -> ScaleSpaceSampler:
    """The ancestral sampler of DDPM, with as many calls of the network as diffusers' pipeline has in `steps` steps."""
    solver = AncestralSolver(steps=steps + 1, last_step="as-released")
    return ScaleSpaceSampler(part.networks["net"], part.config, solver, precision)


def codec(params: Experiment) -> Codec:
    """The autoencoder of the recipe, with random weights."""
    section = params.vae
    vae = autoencoder.build(
        params.data.channels, section.latent_channels, tuple(section.widths), section.layers, section.groups
    )
    return Codec(vae.eval().requires_grad_(False), params.data.channels)


def times(count: int, call: Callable[[], Result]) -> Callable[[], None]:
    """A call that calls `call` so often: what takes milliseconds is timed in blocks."""

    def block() -> None:
        for _ in range(count):
            call()

    return block
