"""What a trained teacher does before its student is trained: it is checked, and generates images to learn from.

DMD takes the teacher's score at every resolution of the schedule. The score of a teacher that cannot generate at a low
resolution is wrong there, so DMD is refused (SwD, arXiv 2503.16397, appendix B). Of published teachers the paper says
which can: SD3.5 and FLUX, not SDXL (`settings.check_student`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from multiscale import flow, sampling
from multiscale.condition import Classes, beside
from multiscale.core import models
from multiscale.core.device import default_device
from multiscale.core.resize import area_to
from multiscale.core.settings import Bad
from multiscale.core.storage import Table
from multiscale.methods.swd.config import Statistics
from multiscale.methods.swd.parts import load_teacher, renormalised
from multiscale.methods.swd.sampler import TeacherSampler, solved
from multiscale.methods.swd.settings import Student, Synthetic
from multiscale.networks import autoencoder

IMAGES = 200  # for the check, at each resolution
SOLVER = flow.Solver(steps=12)  # without guidance, which changes the distribution
GRID = 4
# The embedded teacher has a distance of 0.005, 0.003 and 0.007 at 16, 24 and 32 px; one trained at 32 px alone, of
# 0.79, 0.42 and 0.002. A mean that is off by half a standard deviation makes 0.29, half the standard deviation 0.20.
LARGEST = 0.1
FIRST_SEED = 10**9  # of training images: those of the leaderboard's samples count from zero
BATCH = 50
Encode = Callable[[Tensor, int], Tensor]  # (uint8 images (n, C, H, H), resolution in pixels) -> latents (n, c, h, h)


def check(settings: Student, teacher: Path, pyramid: Path) -> None:
    """Raises Bad for DMD from a trained teacher that cannot generate at a resolution of the schedule."""
    if models.about(teacher)["role"] == "published":
        return
    for resolution in sorted(set(settings.schedule.resolutions)) if settings.dmd.weight else ():
        if not (found := distance(teacher, pyramid, resolution)) <= LARGEST:
            allowed = f"0.0: the teacher {settings.teacher} cannot generate at {resolution} px, where its latents are "
            allowed += f"{found:.2f} away from the data's (at most {LARGEST}; 1 is the mean image every time)"
            raise Bad("dmd.weight", settings.dmd.weight, allowed)


def distance(teacher: Path, pyramid: Path, resolution: int) -> float:
    """How far a teacher's latents are from the data's at a resolution in pixels, averaged on a 4x4 grid.

    About 0 for equal distributions, 1 for a teacher that makes the mean image every time; see `relative_distance`.
    """
    device = default_device()
    net, config = load_teacher(teacher)
    net = net.eval().requires_grad_(False).to(device)
    table = Table.open(pyramid / "targets.safetensors", f"z{resolution}", "label")
    count = min(IMAGES, len(table))
    rows = table[torch.arange(count) * (len(table) // count)]
    real = renormalised(Statistics.of(pyramid).latent, config.latent)(rows[f"z{resolution}"])
    labels, shape, conditioner = rows["label"].to(device), tuple(real.shape[1:]), beside(pyramid, config.classes)
    generated = []
    with torch.inference_mode():
        for start in range(0, count, BATCH):
            chosen = labels[start : start + BATCH]
            seeds = list(range(start, start + len(chosen)))
            condition = conditioner(chosen)
            generated.append(solved(net, shape, seeds, condition, SOLVER, device).cpu())
    return relative_distance(*(area_to(z, GRID).flatten(1) for z in (torch.cat(generated), real)))


def relative_distance(generated: Tensor, real: Tensor) -> float:
    """The energy distance of two sets of vectors (N, d), (M, d), over that of the real ones from their mean.

    2 E|x - y| - E|x - x'| - E|y - y'| (Szekely & Rizzo 2013) with means over distinct pairs: unbiased, so that equal
    distributions are about 0 in any dimension, on either side of it. A set that holds the real mean alone has 1.
    """
    generated, real = generated.double(), real.double()

    def within(x: Tensor) -> Tensor:
        apart = torch.cdist(x, x)
        return (apart.sum() - apart.trace()) / (len(x) * (len(x) - 1))

    spread = within(real)
    distance = 2 * torch.cdist(generated, real).mean() - within(generated) - spread
    return float(distance / (2 * torch.cdist(real.mean(0, keepdim=True), real).mean() - spread))


class TeacherImages:
    """A pyramid of images that a teacher generates at the full resolution, decided by `settings`, teacher and pyramid.

    As in the stages `latents` and `decompose`, images are downsampled in pixels, encoded, and normalised.
    """

    def __init__(self, settings: Synthetic, teacher: Path, pyramid: Path):
        self.settings, self.count, self.teacher, self.pyramid = settings, settings.images, teacher, pyramid
        self.statistics = Statistics.of(pyramid)
        channels, grids = self.statistics.latent.channels, self.statistics.grids.items()
        self.shapes = {f"z{name}": (np.float32, (self.count, channels, grid, grid)) for name, grid in grids}

    def blocks(self, encode: Encode) -> Iterator[dict[str, Tensor]]:
        """The arrays of `shapes` and the labels, block by block."""
        net, config = load_teacher(self.teacher)
        codec = autoencoder.beside(self.pyramid)  # of its own: the sampler casts its weights
        conditioner = beside(self.pyramid, config.classes)
        sampler = TeacherSampler(net, config, codec, self.settings.solver, "auto", conditioner)
        seeds = list(range(FIRST_SEED, FIRST_SEED + self.count))
        turns = torch.arange(self.count)
        if isinstance(conditioner, Classes):
            labels = turns % config.classes
        else:  # the captions of the dataset
            known = Table.open(self.pyramid / "targets.safetensors", "label")
            labels = known[turns % len(known)]["label"]
        done = 0
        for pixels in sampling.generate(sampler, seeds, labels, BATCH):
            latents = {
                f"z{resolution}": self.statistics.latent.apply(encode(pixels, int(resolution)))
                for resolution in self.statistics.grids
            }
            yield {**latents, "label": labels[done : done + len(pixels)]}
            done += len(pixels)


def images(settings: Student, teacher: Path, pyramid: Path) -> TeacherImages | None:
    """What the teacher generates for a student that learns from its images; None for the dataset's own."""
    return TeacherImages(settings.synthetic, teacher, pyramid) if settings.synthetic else None
