"""Training images that a teacher generates: a pyramid like that of a dataset, in its place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from multiscale.condition import Classes, conditioner_of
from multiscale.core.models import TEXT, TEXT_ROWS
from multiscale.core.storage import Table
from multiscale.methods.swd import teaching
from multiscale.methods.swd.config import Statistics
from multiscale.methods.swd.parts import load_teacher
from multiscale.methods.swd.sampler import TeacherSampler
from multiscale.methods.swd.settings import Synthetic
from multiscale.networks import autoencoder

FIRST_SEED = 10**9  # of training images: those of the leaderboard's samples count from zero
Encode = Callable[[Tensor, int], Tensor]  # (uint8 images (n, C, H, H), resolution in pixels) -> latents (n, c, h, h)


class Images:
    """The images of a section, by the teacher in a folder, made like those of the pyramid in another.

    Image k has the seed 10^9 + k, and the class k modulo the classes; with text the caption of training image k modulo
    theirs, or the prompt k modulo the prompts.
    """

    def __init__(self, settings: Synthetic, teacher: Path, pyramid: Path):
        self.settings, self.teacher, self.pyramid = settings, teacher, pyramid
        self.statistics = Statistics.of(pyramid)
        self.seeds = list(range(FIRST_SEED, FIRST_SEED + settings.images))

    @property
    def shapes(self) -> dict[str, tuple[type, tuple[int, ...]]]:
        """The arrays of the pyramid, but for the label."""
        count, channels = len(self.seeds), self.statistics.latent.channels
        return {f"z{name}": (np.float32, (count, channels, grid, grid)) for name, grid in self.statistics.grids.items()}

    def sampler(self) -> TeacherSampler:
        """The teacher's, with an autoencoder of its own, whose weights it casts."""
        net, config = load_teacher(self.teacher)
        codec, conditioner = autoencoder.codec_of(self.pyramid), conditioner_of(self.pyramid, config.classes)
        return TeacherSampler(net, config, codec, self.settings.solver, "auto", conditioner)

    def labels(self) -> Tensor:
        """What the sampler is told of each image, (N,)."""
        turns = torch.arange(len(self.seeds))
        if isinstance(conditioner_of(self.pyramid, self.statistics.classes), Classes):
            return turns % self.statistics.classes
        if self.settings.texts == "prompts":
            rows = load_file(self.pyramid / TEXT / TEXT_ROWS)["prompts"]
            return rows[turns % len(rows)]
        known = Table.open(self.pyramid / "targets.safetensors", "label")
        return known[turns % len(known)]["label"]

    def latents(self, pixels: Tensor, encode: Encode) -> dict[str, Tensor]:
        """The latents of uint8 images (n, C, H, H), downsampled in pixels, in half precision as data are stored."""
        return {f"z{name}": encode(pixels, int(name)).half() for name in self.statistics.grids}

    def targets(self, latents: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Those latents as arrays of the pyramid: normalised."""
        return {name: self.statistics.latent.apply(z.float()) for name, z in latents.items()}

    def finish(self, folder: Path) -> None:
        """Puts the images of the dataset by which teachers are judged beside the arrays."""
        save_file(teaching.judged_by(self.pyramid, *self.shapes), folder / teaching.DATA)
