"""The ablations in the recipes run from decomposition to samples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import Project, write_images
from safetensors.numpy import load_file

from stages import recipe

RECIPE = "wmgm-ablations"
METHODS = ("sgm-euler", "wsgm", "pixel-gan", "regression", "small-diffusion")


@pytest.fixture
def small(project) -> Project:
    """The recipe with small networks and budgets."""
    recipe.switch(RECIPE, force=True)
    given = project.read()
    changes = {"sample.images": 20, "sample.batch": 20}
    for name, part in given["parts"].items():
        short = {"images": 16, "warmup_images": 0, "log_images": 16}
        changes |= {f"parts.{name}.training.{key}": value for key, value in short.items()}
        if "network" in part:
            sizes = {"width": 8, "multipliers": [1, 1], "attention": [], "groups": 4}
            changes |= {f"parts.{name}.network.{key}": value for key, value in sizes.items()}
    for name, method in given["methods"].items():
        changes |= {f"methods.{name}.solver.steps": 2, f"methods.{name}.solver.guidance_interval": [0.0, 1.0]}
        if "detail_solver" in method:
            changes[f"methods.{name}.detail_solver.steps"] = 2
    project.change(changes)
    write_images(Path("data/images.parquet"), 80)
    return project


def test_every_ablation_runs_from_the_decomposition_to_the_samples(small):
    def run(*command: str) -> None:
        done = small.stage(*command)
        assert done.returncode == 0, done.stderr

    given = small.read()
    run("vae")
    for name in given["decompose"]:
        run("decompose", name)
    for name in METHODS:
        for part in (part for part, section in given["parts"].items() if section["method"] == name):
            run("train", part)
            found = Path("models", name, part, "examined.json")
            assert found.exists() == (part == "pixel-gan-details"), "a generator with noise is examined"
        run("sample", name)
        made = load_file(f"samples/{name}/images.safetensors")["pixels"]
        assert made.shape == (20, 1, 32, 32) and np.ptp(made) > 0
    levels = json.loads(Path("models/pixel-gan/pixel-gan-details/examined.json").read_text())["diversity"]
    assert [row["level"] for row in levels] == [1]
    calls = {name: json.loads(Path(f"samples/{name}/costs.json").read_text())["network_calls"] for name in METHODS}
    # Two guided steps, twice the network each; then a pass, or two steps of a score model, for the details.
    assert calls == {"sgm-euler": 4, "wsgm": 6, "pixel-gan": 5, "regression": 5, "small-diffusion": 6}
