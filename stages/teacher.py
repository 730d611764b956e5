"""What a teacher is asked for before its student is trained: whether it can generate at a side, and images of its own.

DMD asks the teacher for its score at every side of the schedule. One that makes no images at a low side gives a wrong
score there, so DMD is refused (SwD, arXiv 2503.16397, appendix B: SDXL is such a teacher).
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from multiscale import sampling
from multiscale.core.device import default_device, resolve_precision
from multiscale.core.pixels import per_channel
from multiscale.core.resize import area_to
from multiscale.core.storage import Table, TensorWriter, atomic_folder, read_json, write_json
from multiscale.evaluation import metrics
from multiscale.methods.swd import parts as swd_parts
from multiscale.methods.swd import sampler as swd_sampler
from multiscale.methods.swd.settings import Student, Synthetic
from stages.common import codec, keys
from stages.common.harness import progress
from stages.common.paths import SCRATCH

IMAGES = 500  # that a teacher is checked by at each side
STEPS = 12
GRID = 4
# The embedded teacher has a distance of 0.005, 0.003 and 0.007 at 16, 24 and 32 px; one trained at 32 px alone, of
# 0.79, 0.42 and 0.002. A mean that is off by half a standard deviation makes 0.29, half the standard deviation 0.20.
LARGEST = 0.1
FIRST_SEED = 10**9  # of training images: those of the leaderboard's samples count from zero
BATCH = 50


def distance(folder: Path, pyramid: Path, side: int) -> float:
    """How far a teacher's latents are from the data's at a side in pixels, without guidance: that changes their law.

    The relative energy distance of latents averaged on a 4x4 grid: about 0 for equal laws, 1 for a teacher that makes
    the mean image every time.
    """
    net, config = swd_parts.load_teacher(folder)
    net = net.eval().requires_grad_(False).to(default_device())
    statistics = read_json(pyramid / "statistics.json")
    bring = swd_parts.renormalised(
        statistics["shift"], statistics["scale"], config["latent_shift"], config["latent_scale"]
    )
    table = Table.open(pyramid / "targets.safetensors", f"z{side}", "label")
    count = min(IMAGES, len(table))
    rows = table[torch.arange(count) * (len(table) // count)]
    real, labels = bring(rows[f"z{side}"]), rows["label"].to(default_device())
    solver, shape = {"method": "euler", "steps": STEPS, "cfg": 1.0}, tuple(real.shape[1:])
    made = []
    with torch.inference_mode():
        for start in range(0, count, BATCH):
            chosen = labels[start : start + BATCH]
            seeds = list(range(start, start + len(chosen)))
            made.append(swd_sampler.solved(net, net.null_label, shape, seeds, chosen, solver, lambda z: None).cpu())
    return metrics.relative_distance(*(area_to(z, GRID).flatten(1) for z in (torch.cat(made), real)))


def unable(folder: Path, pyramid: Path, student: Student) -> tuple[int, float] | None:
    """The first side of a student's steps at which its teacher cannot generate, with the distance, or None."""
    for side in sorted(set(student.schedule.sides)):
        found = distance(folder, pyramid, side)
        if not found <= LARGEST:
            return side, found
    return None


def images(
    folder: Path,
    pyramid: Path,
    section: Synthetic,
    channels: int,
    precision: str,
    code: Iterable[Path] | None = None,
) -> Path:
    """A pyramid of images that the teacher makes at the full side, kept in the scratch folder for the next student.

    Decoded, downsampled by area in pixels to each side and encoded, as the stage `latents` does with the data, in the
    precision that it has. See `fitting.job` for `code`.
    """
    from multiscale.networks import autoencoder
    from stages.latents import Encoder

    device = default_device()
    precision = resolve_precision(precision, device)
    settings = {
        "section": section.model_dump(),
        "channels": channels,
        "precision": [precision, resolve_precision("auto", device)],  # of encoding, of sampling
    }
    beside = pyramid / codec.BESIDE
    inputs = [folder, pyramid / "statistics.json", *([beside] if beside.exists() else [])]
    out = SCRATCH / "synthetic" / keys.key(settings, inputs, keys.loaded() if code is None else code)
    if out.exists():
        return out
    load = partial(autoencoder.load_or_pixels, beside, channels)
    encoder = Encoder(load(), precision)  # with weights of its own: the sampler casts those that it decodes with
    net, config = swd_parts.load_teacher(folder)
    sampler = swd_sampler.TeacherSampler(net, config, load(), section.solver.model_dump(), "auto")
    statistics = read_json(pyramid / "statistics.json")
    shift, scale = per_channel(statistics["shift"]), per_channel(statistics["scale"])
    seeds = list(range(FIRST_SEED, FIRST_SEED + section.images))
    labels = torch.arange(section.images) % config["classes"]
    shapes = {
        f"z{side}": (np.float32, (section.images, config["channels"], grid, grid))
        for side, grid in statistics["grids"].items()
    }
    with atomic_folder(out) as made, progress("images of the teacher", section.images) as reach:
        writer = TensorWriter(made / "targets.safetensors", {**shapes, "label": (np.int64, (section.images,))})
        writer.write("label", 0, labels)
        done = 0
        for pixels in sampling.generate(sampler, seeds, labels, BATCH):
            for side in statistics["grids"]:
                mean, _ = encoder.encode(pixels, int(side))
                writer.write(f"z{side}", done, (mean.half().float() - shift) / scale)  # rounded as when they are stored
            done += len(pixels)
            reach(done)
        writer.close()
        write_json(made / "statistics.json", statistics)
    return out
