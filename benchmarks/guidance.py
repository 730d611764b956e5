"""KID, recall and label accuracy of trained methods at several guidance scales, the same at all of their resolutions.

    python -m benchmarks.guidance pyramidal flow # methods of params.yaml that have `scales`, after `dvc repro`

Which of two methods is better may depend on the scale, and the best scale on how long a network has trained.
"""

from __future__ import annotations

import sys

import torch

from benchmarks.common import save
from benchmarks.quality import Quality
from multiscale import model
from multiscale.sampling import generate
from stages.common import settings
from stages.common.images import classes
from stages.common.paths import MODELS

SCALES = (1.0, 1.5, 2.0, 3.0)


def main(methods: list[str]) -> None:
    params = settings.load()
    quality, images = Quality(params.evaluate, params.run.batch), params.sample.images
    labels, found = torch.arange(images) % classes(), []
    for scale in SCALES:
        for name in methods:
            method = params.methods[name]
            solvers = [each.model_copy(update={"guidance_scale": scale}) for each in method.scales]
            sampler = model.load(MODELS / name, method.model_copy(update={"scales": solvers}), params.sample.precision)
            made = torch.cat(list(generate(sampler, list(range(images)), labels, params.sample.batch)))
            found.append({"method": name, "guidance_scale": scale} | quality(made, labels))
            print(found[-1], flush=True)
    save(f"guidance_{params.recipe}", {"images": images, "cells": found})


if __name__ == "__main__":
    main(sys.argv[1:])
