"""The noise of a jump in pyramidal flow matching: what it gains after short and long trainings, and from real latents.

    python -m benchmarks.pyramidal_noise 1000 # images a cell, after `dvc repro` of the embedded recipe; 12 minutes

The part `pyramidal` is trained with several budgets and seeds. Each training is sampled with the noise and without it,
once as the method does it, and once with real images for its first segment: (1 - e) z + e n of the latents z of small
training images, so that the second segment starts from what it was trained on. KID and label accuracy of each.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from benchmarks.common import save
from benchmarks.quality import Quality
from multiscale.core.device import autocast
from multiscale.core.pixels import to_pixels
from multiscale.core.storage import Table
from multiscale.core.streams import noise_of_seeds
from multiscale.methods.pyramidal import path
from multiscale.methods.pyramidal.parts import PyramidalConfig, build_part
from multiscale.methods.pyramidal.sampler import PyramidalSampler
from multiscale.methods.pyramidal.settings import PyramidalMethod, PyramidalPart, resolutions
from multiscale.networks import autoencoder
from multiscale.training.checkpoint import Checkpoints
from multiscale.training.loop import fit
from multiscale.training.part import Training
from stages.common import settings
from stages.common.paths import DECOMPOSED, VAE

ROW = "pyramidal"
BUDGETS = (9_000, 18_000, 36_000, 72_000)
SEEDS = (0, 1)
BATCH = 50


def trained(section: PyramidalPart, images: int, seed: int) -> tuple[PyramidalConfig, dict[str, Tensor]]:
    """The config and the averaged weights of a training with another budget and seed."""
    training = Training.model_validate(section.training.model_dump() | {"images": images, "validation_images": 0})
    torch.manual_seed(seed)  # as the stage does
    part = build_part(ROW, section, DECOMPOSED / section.dataset)
    with tempfile.TemporaryDirectory() as folder:
        found = fit(part, training, seed, Checkpoints(Path(folder), ROW, "key"), checkpoint_seconds=3600)
    return part.config, found.weights


def continued(sampler: PyramidalSampler, z: Tensor, seeds: list[int], labels: Tensor) -> Tensor:
    """Images (N, C, H, H) whose first segment ends in real latents z (N, c, h, h)."""
    first, second = sampler.segments
    noise = noise_of_seeds(seeds, "real", tuple(z.shape[1:]), sampler.device)
    white = noise_of_seeds(seeds, "segment-1", sampler.shapes[1], sampler.device) if sampler.noise else None
    end = first.points(z.to(sampler.device), None, noise)[1]
    with torch.inference_mode(), autocast(sampler.precision, sampler.device):
        condition = sampler.conditioner(labels.to(sampler.device))
        return sampler.decoded(sampler.through(1, path.jump(end, first, second, white), condition))


def main(images: int) -> None:
    params = settings.load()
    section, method = params.parts[ROW], params.methods[ROW]
    section, method = cast(PyramidalPart, section), cast(PyramidalMethod, method)
    codec, quality = autoencoder.load(VAE, 1), Quality(params.evaluate, params.run.batch)
    table = Table.open(DECOMPOSED / section.dataset / "targets.safetensors")
    rows = table[torch.arange(images) * (len(table) // images)]
    labels, low = rows["label"], rows[f"z{min(resolutions(params.data.resolution, section.jumps))}"]
    found = []
    for budget in BUDGETS:
        for seed in SEEDS:
            config, weights = trained(section, budget, seed)
            for noise in (True, False):
                net = config.build()
                net.load_state_dict(weights)
                sampler = PyramidalSampler(net, config, method.model_copy(update={"noise": noise}), codec, "auto")
                for start in ("generated", "real"):
                    made = []
                    for at in range(0, images, BATCH):
                        seeds, own = list(range(at, at + BATCH)), labels[at : at + BATCH]
                        whole = (
                            sampler(seeds, own)
                            if start == "generated"
                            else continued(sampler, low[at : at + BATCH], seeds, own)
                        )
                        made.append(to_pixels(whole))
                    cell = {"images": budget, "seed": seed, "start": start, "noise": noise}
                    found.append(cell | quality(torch.cat(made), labels))
                    print(found[-1], flush=True)
    save("pyramidal_noise", {"images": images, "method": method.model_dump(), "cells": found})


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
