"""KID, recall and label accuracy of trained methods at several guidance scales, the same at all of their resolutions.

    python -m benchmarks.guidance pyramidal flow          # methods of params.yaml, after `dvc repro`
    python -m benchmarks.guidance ddpm dit --scales 1     # without guidance alone

Which of two methods is better may depend on the scale, and the best scale on how long a network has trained. Guidance
costs recall.
"""

from __future__ import annotations

import argparse

import torch

from benchmarks.common import save
from benchmarks.quality import Quality
from multiscale import model
from multiscale.core.settings import Sampled
from multiscale.sampling import generate
from stages.common import settings
from stages.common.images import classes
from stages.common.paths import MODELS

SCALES = (1.0, 1.5, 2.0, 3.0)


def guided(method: Sampled, scale: float) -> Sampled:
    """The same method with another guidance scale at every resolution."""
    changed = {"guidance_scale": scale}
    if hasattr(method, "scales"):
        return method.model_copy(update={"scales": [each.model_copy(update=changed) for each in method.scales]})
    return method.model_copy(update={"solver": method.solver.model_copy(update=changed)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+", metavar="METHOD", help="a method of params.yaml that takes guidance")
    parser.add_argument(
        "--scales", nargs="+", type=float, default=SCALES, help="guidance scales (default: %(default)s)"
    )
    asked = parser.parse_args()
    params = settings.load()
    quality, images = Quality(params.evaluate, params.run.batch), params.sample.images
    labels, found = torch.arange(images) % classes(), []
    for scale in asked.scales:
        for name in asked.methods:
            sampler = model.load(MODELS / name, guided(params.methods[name], scale), params.sample.precision)
            made = torch.cat(list(generate(sampler, list(range(images)), labels, params.sample.batch)))
            found.append({"method": name, "guidance_scale": scale} | quality(made, labels))
            print(found[-1], flush=True)
    save(f"guidance_{params.recipe}", {"images": images, "cells": found})


if __name__ == "__main__":
    main()
