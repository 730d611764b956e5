"""KID, recall and label accuracy of trained methods at several guidance scales, the same at all of their resolutions.

    python -m benchmarks.guidance pyramidal flow                        # methods of params.yaml, after `dvc repro`
    python -m benchmarks.guidance ddpm --scales 1 --etas 0 1            # without guidance; DDIM and DDPM
    python -m benchmarks.guidance ddpm --scales 1 --etas 1 --steps 100  # with more steps than in params.yaml

Which of two methods is better may depend on the scale, and the best scale on how long a network has trained. Guidance
costs recall. So may the noise that SSD and DDPM draw at each step (eta), where the steps are few.
"""

from __future__ import annotations

import argparse
from itertools import product

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


def guided(method: Sampled, scale: float, eta: float | None = None) -> Sampled:
    """The same method with another guidance scale at every resolution, and with another eta of its solver."""
    given, changed = method.model_dump(), {"guidance_scale": scale} | ({} if eta is None else {"eta": eta})
    if "scales" in given:
        given["scales"] = [each | changed for each in given["scales"]]
    else:
        given["solver"] |= changed
    return type(method).model_validate(given)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="+", metavar="METHOD", help="a method of params.yaml that takes guidance")
    own = "(default: those of the methods)"
    parser.add_argument(
        "--scales", nargs="+", type=float, default=SCALES, help="guidance scales (default: %(default)s)"
    )
    parser.add_argument("--etas", nargs="+", type=float, help=f"noise of SSD's and DDPM's steps, 0 to 1 {own}")
    parser.add_argument("--steps", nargs="+", type=int, help=f"numbers of solver steps {own}")
    asked = parser.parse_args()
    varied = {key: values for key, values in (("eta", asked.etas), ("steps", asked.steps)) if values}
    params = settings.load()
    quality, images = Quality(params.evaluate, params.run.batch), params.sample.images
    labels, found = torch.arange(images) % classes(), []
    for scale, *values in product(asked.scales, *varied.values()):
        solver = dict(zip(varied, values))
        for name in asked.methods:
            method = params.methods[name]
            if "steps" in solver:
                method = method.at(solver["steps"])
            method = guided(method, scale, solver.get("eta"))
            sampler = model.load(MODELS / name, method, params.sample.precision)
            made = torch.cat(list(generate(sampler, list(range(images)), labels, params.sample.batch)))
            found.append({"method": name, "guidance_scale": scale} | solver | quality(made, labels))
            print(found[-1], flush=True)
    save(f"guidance_{params.recipe}", {"images": images, "cells": found})


if __name__ == "__main__":
    main()
