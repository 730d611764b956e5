"""The check of a trained teacher before its student is trained.

DMD takes the teacher's score at every resolution of the schedule. The score of a teacher that cannot generate at a low
resolution is wrong there, so DMD is refused (SwD, arXiv 2503.16397, appendix B). Of published teachers the paper says
which can: SD3.5 and FLUX, not SDXL (`settings.check_student`).
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor

from multiscale import flow
from multiscale.condition import conditioner_of
from multiscale.core import models
from multiscale.core.device import default_device
from multiscale.core.resize import area_to
from multiscale.core.settings import Bad
from multiscale.core.storage import Table
from multiscale.methods.swd.config import Statistics
from multiscale.methods.swd.parts import load_teacher, renormalised
from multiscale.methods.swd.sampler import solved
from multiscale.methods.swd.settings import Student

IMAGES = 200  # for the check, at each resolution
SOLVER = flow.Solver(steps=12)  # without guidance, which changes the distribution
GRID = 4
# The embedded teacher has a distance of 0.005, 0.003 and 0.007 at 16, 24 and 32 px; one trained at 32 px alone, of
# 0.79, 0.42 and 0.002. A mean that is off by half a standard deviation makes 0.29, half the standard deviation 0.20.
LARGEST = 0.1
BATCH = 50
DATA = "data.safetensors"  # beside generated images: `judged_by` of the dataset that they are made like


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
    statistics, rows = Statistics.of(pyramid), judged_by(pyramid, f"z{resolution}")
    real = renormalised(statistics.latent, config.latent)(rows[f"z{resolution}"])
    grid = statistics.grids[str(resolution)]
    labels, shape = rows["label"].to(device), (real.shape[1], grid, grid)
    conditioner = conditioner_of(pyramid, config.classes)
    generated = []
    with torch.inference_mode():
        for start in range(0, len(labels), BATCH):
            chosen = labels[start : start + BATCH]
            seeds = list(range(start, start + len(chosen)))
            condition = conditioner(chosen)
            generated.append(solved(net, shape, seeds, condition, SOLVER, device).cpu())
    return relative_distance(area_to(torch.cat(generated), GRID).flatten(1), real.flatten(1))


def judged_by(pyramid: Path, *names: str) -> dict[str, Tensor]:
    """The images of a dataset that a teacher is judged by: their label (n,), and of each name latents (n, c, 4, 4).

    Those of generated images are of the dataset that they are made like: guidance has changed their own distribution.
    """
    if (pyramid / DATA).exists():
        return load_file(pyramid / DATA)
    table = Table.open(pyramid / "targets.safetensors", *names, "label")
    count = min(IMAGES, len(table))
    rows = table[torch.arange(count) * (len(table) // count)]
    return {name: area_to(rows[name], GRID) for name in names} | {"label": rows["label"]}


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
