"""SwD's table of upscaling strategies on the project's data: where a small latent may take the place of the true one.

    python -m benchmarks.swd_upscaling 1000 # images a cell, after `dvc repro`

Latents of the data at a low side are brought to the full side at noise sigma by the strategies A, B and C, and the
teacher `swd-teacher` finishes from there, as many of its guided steps as are left. KID and label accuracy of each.
"""

from __future__ import annotations

import sys

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.common import save
from multiscale import autoencoder, metrics
from multiscale.classifier import accuracy, load
from multiscale.core.device import set_threads
from multiscale.core.pixels import to_pixels
from multiscale.core.storage import Table, read_json
from multiscale.core.streams import noise_of_seeds
from multiscale.methods import swd
from multiscale.processes import flow
from multiscale.scales.upscaling import STRATEGIES, noisy
from stages.common import settings
from stages.common.paths import CLASSIFIER, DECOMPOSED, MODELS, REFERENCE, VAE
from stages.reference import Extractor

TEACHER = "swd-teacher"
LEVELS = (0.4, 0.6, 0.8)
BATCH = 50


def finished(sampler: swd.TeacherSampler, x: Tensor, labels: Tensor, sigma: float) -> Tensor:
    """Images (N, C, H, H) that the teacher makes of a state at noise sigma: time runs from sigma instead of from 1."""
    net, solver = sampler.net, sampler.solver
    velocity = flow.guided(lambda x, t, c: net(x, t, c).float(), labels, net.null_label, solver["cfg"])
    steps = max(1, round(sigma * solver["steps"]))
    z = flow.SOLVERS[solver["method"]](lambda x, t: sigma * velocity(x, sigma * t), x, steps)
    return sampler._image(z)


def main(images: int) -> None:
    set_threads()
    params = settings.load("data", "parts", "methods", "evaluate")
    pyramid = DECOMPOSED / params.parts[TEACHER].reads
    folder = MODELS / TEACHER / TEACHER
    solver = params.methods[TEACHER].solver.model_dump()
    codec = autoencoder.load(VAE, params.data.channels)
    sampler = swd.TeacherSampler(*swd.load_teacher(folder), codec, solver, "auto")
    judge, extractor = load(CLASSIFIER), Extractor(params.evaluate)
    real = load_file(REFERENCE / "features.safetensors")["distance"]
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
                    with torch.inference_mode():
                        pixels.append(to_pixels(finished(sampler, x, labels.to(sampler.device), sigma)))
                made = torch.cat(pixels)
                pairs = [extractor.extract(batch) for batch in made.split(params.evaluate.batch)]
                seen, logits = (torch.cat(layer) for layer in zip(*pairs))
                values = metrics.distances(
                    seen,
                    real,
                    logits,
                    kid_subsets=params.evaluate.kid_subsets,
                    kid_subset_size=min(params.evaluate.kid_subset_size, images),
                    is_splits=1,
                    prc_neighborhood=params.evaluate.prc_neighborhood,
                )
                cell = {key: values[key] for key in ("kid", "kid_std", "fd", "recall")}
                cell["label_accuracy"] = accuracy(judge, made, rows["label"]) if judge else None
                found[f"{side} px, {strategy}, sigma {sigma}"] = cell
                print(f"{side} px, {strategy}, sigma {sigma}: {cell}", flush=True)
    save(f"swd_upscaling_{params.data.name}", {"images": images, "solver": solver, "cells": found})


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
