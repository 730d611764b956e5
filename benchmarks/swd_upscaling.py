"""SwD's table of upscaling strategies on the project's data: where a small latent may take the place of the true one.

    python -m benchmarks.swd_upscaling 1000 # images a cell, after `dvc repro`

Latents of the data at a low side are brought to the full side at noise sigma by the strategies A, B and C, and the
teacher `swd-teacher` finishes from there, as many of its guided steps as are left. KID and label accuracy of each.
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from benchmarks.common import save
from benchmarks.judge import Judge
from multiscale import flow
from multiscale.core.device import autocast
from multiscale.core.pixels import to_pixels
from multiscale.core.storage import Table, read_json
from multiscale.core.streams import noise_of_seeds
from multiscale.methods.swd import parts as swd_parts
from multiscale.methods.swd import sampler as swd_sampler
from multiscale.methods.swd.upscaling import STRATEGIES, noisy
from multiscale.networks import autoencoder
from stages.common import settings
from stages.common.paths import DECOMPOSED, MODELS, VAE

TEACHER = "swd-teacher"
LEVELS = (0.4, 0.6, 0.8)
BATCH = 50


def finished(sampler: swd_sampler.TeacherSampler, x: Tensor, labels: Tensor, sigma: float) -> Tensor:
    """Images (N, C, H, H) that the teacher makes of a state at noise sigma: time runs from sigma instead of from 1."""
    net, solver = sampler.net, sampler.solver
    velocity = flow.guided(lambda x, t, c: net(x, t, c).float(), labels, net.null_label, solver["cfg"])
    steps = max(1, round(sigma * solver["steps"]))
    z = flow.SOLVERS[solver["method"]](lambda x, t: sigma * velocity(x, sigma * t), x, steps)
    return sampler._image(z)


def main(images: int) -> None:
    params = settings.load("data", "parts", "methods", "evaluate")
    pyramid = DECOMPOSED / params.parts[TEACHER].reads
    folder = MODELS / TEACHER / TEACHER
    solver = params.methods[TEACHER].solver.model_dump()
    codec = autoencoder.load(VAE, params.data.channels)
    sampler = swd_sampler.TeacherSampler(*swd_parts.load_teacher(folder), codec, solver, "auto")
    judge = Judge(params.evaluate)
    sides = [int(side) for side in read_json(pyramid / "statistics.json")["grids"]]
    table = Table.open(pyramid / "targets.safetensors")
    rows = table[torch.arange(images) * max(1, len(table) // images)]
    images = len(rows["label"])
    full = rows[f"z{sides[-1]}"].shape[-1]
    found = {}
    for side in sides:
        for strategy in STRATEGIES:
            if (strategy == "A") != (side == sides[-1]):
                continue
            for sigma in LEVELS:
                pixels = []
                for start in range(0, images, BATCH):
                    low, labels = (rows[key][start : start + BATCH] for key in (f"z{side}", "label"))
                    seeds = list(range(start, start + len(low)))

                    def draw(shape: tuple[int, ...], seeds: list[int] = seeds) -> Tensor:
                        return noise_of_seeds(seeds, "upscaling", shape)

                    x = noisy(low, full, sigma, draw, strategy).to(sampler.device)
                    with torch.inference_mode(), autocast(sampler.precision, sampler.device):
                        pixels.append(to_pixels(finished(sampler, x, labels.to(sampler.device), sigma)))
                made = torch.cat(pixels)
                cell = judge(made, rows["label"])
                found[f"{side} px, {strategy}, sigma {sigma}"] = cell
                print(f"{side} px, {strategy}, sigma {sigma}: {cell}", flush=True)
    save(f"swd_upscaling_{params.data.name}", {"images": images, "solver": solver, "cells": found})


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
