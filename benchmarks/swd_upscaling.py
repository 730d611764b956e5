"""SwD's table of upscaling strategies on the project's data: where a small latent may take the place of the true one.

    python -m benchmarks.swd_upscaling 1000 # images a cell, after `dvc repro`

Latents of the data at a low resolution are brought to the full resolution at noise sigma by the strategies A, B and C,
and the teacher `swd-teacher` finishes from there with as many of its guided steps as are left. KID and label accuracy
of each.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from benchmarks.common import save
from benchmarks.quality import Quality
from multiscale import flow
from multiscale.core.device import autocast
from multiscale.core.pixels import to_pixels
from multiscale.core.storage import Table
from multiscale.core.streams import noise_of_seeds
from multiscale.guidance import guided
from multiscale.methods.swd.config import Statistics
from multiscale.methods.swd.parts import load_teacher
from multiscale.methods.swd.sampler import TeacherSampler
from multiscale.methods.swd.upscaling import noisy
from multiscale.networks import autoencoder
from stages.common import settings
from stages.common.paths import DECOMPOSED, MODELS

TEACHER = "swd-teacher"
LEVELS = (0.4, 0.6, 0.8)
BATCH = 50


def finished(sampler: TeacherSampler, x: Tensor, labels: Tensor, sigma: float) -> Tensor:
    """Images (N, C, H, H) that the teacher makes of a state at noise sigma: time runs from sigma instead of from 1."""
    net, solver = sampler.net, sampler.solver
    condition = sampler.conditioner(labels)
    velocity = guided(lambda x, t, *given: net(x, t, *given).float(), condition, solver.guidance_scale)
    left = solver.model_copy(update={"steps": max(1, round(sigma * solver.steps))})
    return sampler.decoded(flow.solve(lambda x, t: sigma * velocity(x, sigma * t), x, left))


def main(images: int) -> None:
    params = settings.load()
    pyramid = DECOMPOSED / params.parts[TEACHER].dataset
    folder = MODELS / TEACHER / TEACHER
    solver = params.methods[TEACHER].solver or flow.Solver()
    sampler = TeacherSampler(*load_teacher(folder), autoencoder.codec_of(folder), solver, "auto")
    quality = Quality(params.evaluate, params.run.batch)
    resolutions = [int(resolution) for resolution in Statistics.of(pyramid).grids]
    table = Table.open(pyramid / "targets.safetensors")
    rows = table[torch.arange(images) * max(1, len(table) // images)]
    images = len(rows["label"])
    full = rows[f"z{resolutions[-1]}"].shape[-1]
    found = {}
    for resolution in resolutions:
        for strategy in ("A", "B", "C"):
            if (strategy == "A") != (resolution == resolutions[-1]):
                continue
            for sigma in LEVELS:
                pixels = []
                for start in range(0, images, BATCH):
                    low, labels = (rows[key][start : start + BATCH] for key in (f"z{resolution}", "label"))
                    seeds = list(range(start, start + len(low)))

                    def draw(shape: tuple[int, ...], seeds: list[int] = seeds) -> Tensor:
                        return noise_of_seeds(seeds, "upscaling", shape)

                    x = noisy(low, full, sigma, draw, strategy).to(sampler.device)
                    with torch.inference_mode(), autocast(sampler.precision, sampler.device):
                        pixels.append(to_pixels(finished(sampler, x, labels.to(sampler.device), sigma)))
                made = torch.cat(pixels)
                cell = quality(made, rows["label"])
                found[f"{resolution} px, {strategy}, sigma {sigma}"] = cell
                print(f"{resolution} px, {strategy}, sigma {sigma}: {cell}", flush=True)
    save(f"swd_upscaling_{params.data.name}", {"images": images, "solver": solver.model_dump(), "cells": found})


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
