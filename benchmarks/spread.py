"""How many images a second the stage `sample` makes in its own process, on one Ray worker and on two.

    python -m benchmarks.spread [images]

The model is the part `dit` of the embedded recipe with random weights: what an image costs does not depend on them.
Each worker opens the model once, and batches go to whoever is free. The rate is that of the images after the first 200,
which take as long as the workers need to start.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path

import torch

from benchmarks import miniature, work
from benchmarks.common import save
from multiscale.core import intact
from stages import sample
from stages.common import codec, paths
from stages.schema import Experiment

METHOD, FEW = "dit", 200


def seconds(params: Experiment, workers: int, images: int) -> tuple[float, str]:
    """Of the stage, and a digest of its images."""
    sampled = params.sample.model_copy(update={"images": images})
    run = params.run.model_copy(update={"workers": workers})
    started = time.perf_counter()
    sample.main(params.model_copy(update={"sample": sampled, "run": run}), METHOD)
    made = paths.SAMPLES / METHOD / "images.safetensors"
    return time.perf_counter() - started, hashlib.sha256(made.read_bytes()).hexdigest()


def main(images: int) -> None:
    params, found = work.recipe(), []
    work.as_stages_do(params)
    with miniature.folder():
        torch.manual_seed(0)
        miniature.prepare(params)
        part = next(part for part, _ in miniature.parts(params) if part.name == METHOD)
        folder = paths.MODELS / METHOD / METHOD
        folder.mkdir(parents=True, exist_ok=True)
        part.save(folder)
        codec.carry(paths.DECOMPOSED / params.parts[METHOD].dataset, folder)
        intact.seal_folder(folder)
        for workers in (0, 1, 2):
            (few, _), (all_, digest) = (seconds(params, workers, count) for count in (FEW, images))
            rate = (images - FEW) / (all_ - few)
            found.append({"workers": workers, "seconds": all_, "seconds_of_few": few, "rate": rate, "digest": digest})
            print(json.dumps(found[-1]), file=sys.stderr)
        left = [path.as_posix() for path in Path(".scratch").rglob("*.safetensors")]
    assert len({each["digest"] for each in found}) == 1, "the same images on any number of workers"
    save("spread", {"images": images, "few": FEW, "batch": params.sample.batch, "left": left, "runs": found}, ["ray"])


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2_000)
