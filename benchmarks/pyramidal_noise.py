"""The noise of a jump in pyramidal flow matching: what it gains after short and long trainings, and from real latents.

    python -m benchmarks.pyramidal_noise 1000 # images a cell, after `dvc repro` of the embedded recipe; 12 minutes

The part `pyramidal` is trained with several budgets and seeds. Each training is sampled with the noise and without it,
once as the method does it, and once with real images for its first segment: (1 - e) z + e n of the latents z of small
training images, so that the second segment starts from what it was trained on. KID and label accuracy of each.
"""

from __future__ import annotations

import sys
import tempfile
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.common import save
from benchmarks.quality import Quality
from multiscale.core.storage import Table
from multiscale.core.streams import noise_of_seeds
from multiscale.methods.pyramidal.parts import PyramidalConfig, build_part
from multiscale.methods.pyramidal.sampler import PyramidalSampler
from multiscale.methods.pyramidal.settings import PyramidalMethod, PyramidalPart, resolutions
from multiscale.networks import autoencoder
from multiscale.sampling import Trace, generate
from multiscale.training.checkpoint import Checkpoints
from multiscale.training.loop import fit
from multiscale.training.part import Training
from stages.common import settings
from stages.common.paths import DECOMPOSED, VAE

ROW = "pyramidal"
BUDGETS = (9_000, 18_000, 36_000, 72_000)
SEEDS = (0, 1)


def trained(section: PyramidalPart, images: int, seed: int) -> tuple[PyramidalConfig, dict[str, Tensor]]:
    """The config and the averaged weights of a training with another budget and seed."""
    training = Training.model_validate(section.training.model_dump() | {"images": images, "validation_images": 0})
    torch.manual_seed(seed)  # as the stage does
    part = build_part(ROW, section, DECOMPOSED / section.dataset)
    with tempfile.TemporaryDirectory() as folder:
        found = fit(part, training, seed, Checkpoints(Path(folder), ROW, "key"), checkpoint_seconds=3600)
    return part.config, found.weights


class FromReal(PyramidalSampler):
    """The first segment of seed k ends in the real latent low[k], of low (N, c, h, h)."""

    def __init__(self, low: Tensor, *given: Any):
        super().__init__(*given)
        self.low = low

    def images(self, seeds: list[int], labels: Tensor, trace: Trace | None) -> Tensor:
        noise = noise_of_seeds(seeds, "real", self.shapes[0], self.device)
        x = self.segments[0].points(self.low[seeds].to(self.device), None, noise)[1]
        return self.decoded(self.through(1, self.jumped(1, x, seeds), self.conditioner(labels), trace))


def main(images: int) -> None:
    params = settings.load()
    section, method = cast(PyramidalPart, params.parts[ROW]), cast(PyramidalMethod, params.methods[ROW])
    codec, quality = autoencoder.load(VAE, 1), Quality(params.evaluate, params.run.batch)
    table = Table.open(DECOMPOSED / section.dataset / "targets.safetensors")
    rows = table[torch.arange(images) * (len(table) // images)]
    low = rows[f"z{min(resolutions(params.data.resolution, section.jumps))}"]
    kinds, found = {"generated": PyramidalSampler, "real": partial(FromReal, low)}, []
    for budget, seed in product(BUDGETS, SEEDS):
        config, weights = trained(section, budget, seed)
        for noise, (start, kind) in product((True, False), kinds.items()):
            net = config.build()
            net.load_state_dict(weights)
            sampler = kind(net, config, method.model_copy(update={"noise": noise}), codec, "auto")
            made = torch.cat(list(generate(sampler, list(range(images)), rows["label"], params.sample.batch)))
            cell = {"images": budget, "seed": seed, "start": start, "noise": noise}
            found.append(cell | quality(made, rows["label"]))
            print(found[-1], flush=True)
    save("pyramidal_noise", {"images": images, "method": method.model_dump(), "cells": found})


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1000)
