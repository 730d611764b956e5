"""The memory of the stages at 100,000 images beside that at 20,000: download to samples, and the evaluation of shares.

    python -m benchmarks.large [images]     # half an hour on one core; writes results/large.json

One Parquet file of PNG (32 x 32) becomes pixels and latents; a DiT of a few thousand parameters, trained for seconds,
samples as many images, and a twentieth of them and a half are evaluated. Each figure is of a process of its own: the
most memory that no file backs, of which torch and the imports are the first quarter GB.
"""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

from benchmarks import growth, miniature
from benchmarks.common import ROOT, apart, save
from benchmarks.data import measured
from benchmarks.kills import environment
from stages.common import paths, settings
from stages.common.reading import read_yaml
from stages.schema import Experiment

FEWER, SHARES = 5, (20, 2)
STEPS = [
    "download",
    "vae",
    "latents 32",
    "decompose full",
    "classifier",
    "reference",
    "train dit",
    "sample dit",
    "evaluate dit",
]
QUIET = {"second_extractor": None, "floors": []}


def experiment(images: int, evaluated: int | None = None) -> Experiment:
    """The tiny recipe with DiT alone, on so many images; of samples there are as many, or those that are evaluated."""
    tree = read_yaml(paths.EXPERIMENT)
    tree["data"] |= {"source": "files", "path": "images.parquet", "test_share": 0.0}
    tree["sample"] |= {"images": evaluated or images, "batch": 100}
    tree["evaluate"] |= QUIET | {"reference_images": 1000}
    return settings.validate(tree, paths.EXPERIMENT)


def step(what: str, images: int, evaluated: int | None = None) -> None:
    """One stage, in a process of its own; prints its figures as JSON."""
    params = experiment(images, evaluated)
    name, *arguments = what.split()
    main = import_module(f"stages.{name}").main
    with measured() as found:
        main(params, *arguments)
    print(json.dumps(found))


def figures(folder: Path, images: int) -> dict[str, dict[str, float]]:
    """The figures of all steps."""
    growth.write_parquet(folder / "images.parquet", images)

    def run(what: str, *evaluated: int) -> dict[str, float]:
        print(what, file=sys.stderr, flush=True)
        given = ", ".join(map(str, (images, *evaluated)))
        return apart(f"from benchmarks.large import step; step({what!r}, {given})")

    found = {what: run(what) for what in STEPS[:-1]}
    for share in SHARES:
        run(STEPS[-2], images // share)
        found[f"{STEPS[-1]}, {images // share} images"] = run(STEPS[-1], images // share)
    return found


def main(images: int) -> None:
    found = {}
    for count in (images // FEWER, images):
        with miniature.folder() as folder:
            (folder / "params/recipes").mkdir(parents=True)
            for name in ("embedded", "tiny"):
                source = ROOT / ("tests/tiny.yaml" if name == "tiny" else f"params/recipes/{name}.yaml")
                (folder / f"params/recipes/{name}.yaml").write_text(source.read_text())
            (folder / "params/recipes/large.yaml").write_text("extends: tiny\nonly: [dit]\n")
            command = [sys.executable, "-m", "stages.recipe", "large", "--force"]
            subprocess.run(command, env=environment(ROOT), check=True)
            found[count] = figures(folder, count)
    save("large", {"images": found}, ["polars"])


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
