"""WMGM against SGM: quality against the number of steps, from the trained models of the current experiment.

    python -m benchmarks.wmgm_vs_sgm [N [STEPS ...]]  # after `dvc repro`; N images a point (default: as the samples)

Each solver has its own curves, with the same steps, seeds, labels, extractor and reference for both methods, which are
sampled in turn. Writes results/wmgm_vs_sgm-DATA.json and .png, and which of the published claims hold (arXiv
2411.09356: 18-38 % lower FID, 60-80 % fewer steps, 40-50 % less sampling time, fewer parameters).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib import pyplot as plt

from benchmarks.common import RESULTS, save
from benchmarks.quality import Quality
from multiscale import model, sampling
from multiscale.core.storage import read_json
from multiscale.evaluation import features
from multiscale.methods.wmgm.parts import build_part
from stages.common import settings
from stages.common.images import classes
from stages.common.paths import DECOMPOSED, MODELS, REFERENCE, TIMINGS
from stages.reporting import figures
from stages.schema import Experiment

METHODS = ("wmgm", "sgm")
STEPS = (3, 5, 10, 20, 40, 80)
SOLVERS = ("dpm-solver++", "euler-maruyama")


def point(name: str, solver: str, steps: int, params: Experiment, labels: torch.Tensor, quality: Quality) -> dict:
    """Quality and cost of a method with a solver and a number of steps."""
    section = params.methods[name]
    # All else of the solver stays, such as the interval that is guided.
    changed = section.solver.model_copy(update={"name": solver, "steps": steps})
    method = section.model_copy(update={"solver": changed})
    sampler = model.load(MODELS / name, method, params.sample.precision)
    batch, seeds = params.sample.batch, list(range(params.sample.first_seed, params.sample.first_seed + len(labels)))
    sampler(seeds[:batch], labels[:batch])  # warm
    started = time.perf_counter()
    images = torch.cat(list(sampling.generate(sampler, seeds, labels, batch)))
    seconds = (time.perf_counter() - started) / len(labels)
    calls = sum(sampling.count_calls(sampler, labels[:1]).values())
    return {"steps": steps, "calls": calls, "seconds_per_image": seconds, **quality(images, labels)}


def size(name: str, params: Experiment) -> dict:
    """Parameters that sample and that are trained (discriminators too); memory and seconds of training, by part."""
    parts = {}
    for part, section in params.parts_of(name).items():
        built = build_part(part, section, DECOMPOSED / section.dataset)
        numbers = {network: sum(p.numel() for p in net.parameters()) for network, net in built.networks.items()}
        timing = read_json(TIMINGS / f"{part}.json")
        cost = {key: timing[key] for key in ("train_seconds", "peak_memory_bytes", "device")}
        parts[part] = {"parameters": numbers, **cost, "sampling_parameters": numbers[built.main]}
    every = parts.values()
    return {
        "sampling_parameters": sum(part["sampling_parameters"] for part in every),
        "trained_parameters": sum(sum(part["parameters"].values()) for part in every),
        "train_seconds": sum(part["train_seconds"] for part in every),
        "peak_training_memory_bytes": max(part["peak_memory_bytes"] for part in every),
        "parts": parts,
    }


def compare(wmgm_points: list[dict], sgm_points: list[dict]) -> dict:
    """The two curves of a solver compared; WMGM matches SGM where its KID is at most SGM's best."""
    best = min(sgm_points, key=lambda p: p["kid"])
    matching = next((p for p in wmgm_points if p["kid"] <= best["kid"]), None)
    slower = sorted(sgm_points, key=lambda p: p["seconds_per_image"])
    times = np.log([p["seconds_per_image"] for p in slower])
    ratios = {}
    for p in wmgm_points:
        at = np.log(p["seconds_per_image"])
        if times[0] <= at <= times[-1]:
            ratios[p["steps"]] = {key: p[key] / np.interp(at, times, [q[key] for q in slower]) for key in ("kid", "fd")}
    finest = min(wmgm_points, key=lambda p: p["kid"])
    return {
        "sgm_best": best,
        "wmgm_best": finest,
        "fd_reduction_at_best": 1 - finest["fd"] / best["fd"],
        "wmgm_matches_sgm_best": matching,
        "fewer_steps_to_match": 1 - matching["steps"] / best["steps"] if matching else None,
        "fewer_calls_to_match": 1 - matching["calls"] / best["calls"] if matching else None,
        "less_time_to_match": 1 - matching["seconds_per_image"] / best["seconds_per_image"] if matching else None,
        "wmgm_over_sgm_at_equal_time_by_steps": ratios,
    }


def claims(found: dict, sizes: dict) -> dict[str, bool]:
    """Which published claims hold for a solver, at their lower bounds."""
    reached = lambda key, bound: found[key] is not None and found[key] >= bound  # noqa: E731
    return {
        "18-38 % lower FID (here FD of the extractor)": reached("fd_reduction_at_best", 0.18),
        "60-80 % fewer steps": reached("fewer_steps_to_match", 0.6),
        "40-50 % less sampling time": reached("less_time_to_match", 0.4),
        "fewer trainable parameters": sizes["wmgm"]["trained_parameters"] < sizes["sgm"]["trained_parameters"],
    }


def draw(curves: dict, steps: Sequence[int], metric: str, count: int, path: Path) -> None:
    """KID against steps and against seconds, one row a solver."""
    with plt.rc_context(figures.STYLE):
        figure, rows = plt.subplots(len(SOLVERS), 2, figsize=(11, 4 * len(SOLVERS)), sharey="row")
        for (solver, both), panels in zip(curves.items(), rows):
            for axes, key, label in zip(panels, ("steps", "seconds_per_image"), ("steps", "seconds per image")):
                for name, points in both.items():
                    x, kid, error = ([p[k] for p in points] for k in (key, "kid", "kid_se"))
                    axes.errorbar(x, kid, error, fmt="o-", capsize=3, label=name)
                axes.set(xlabel=label, xscale="log", title=solver)
            figures.doublings(panels[0], steps)
            panels[0].set_ylabel(f"KID-{metric}, N = {count}")
            panels[0].legend(frameon=False)
        figure.tight_layout()
        figure.savefig(path, format="png", metadata={"Software": None})


def main(count: int | None = None, *steps: int) -> None:
    params = settings.load()
    labels = torch.arange(count or params.sample.images) % classes()
    quality = Quality(params.evaluate, params.run.batch)
    curves: dict = {solver: {name: [] for name in METHODS} for solver in SOLVERS}
    for solver in SOLVERS:
        for taken in steps or STEPS:
            for name in METHODS:
                curves[solver][name].append(point(name, solver, taken, params, labels, quality))
                print(solver, name, curves[solver][name][-1], flush=True)
    sizes = {name: size(name, params) for name in METHODS}
    found = {
        solver: compare(**{f"{name}_points": points for name, points in both.items()})
        for solver, both in curves.items()
    }
    name = f"wmgm_vs_sgm-{params.data.name}"
    metric = features.LABELS[params.evaluate.extractor]
    draw(curves, steps or STEPS, metric, len(labels), RESULTS / f"{name}.png")
    save(
        name,
        {
            "recipe": params.recipe,
            "n": len(labels),
            "first_seed": params.sample.first_seed,
            "extractor": params.evaluate.extractor,
            "reference": read_json(REFERENCE / "reference.json"),
            "curves": curves,
            "comparison": found,
            "sizes": sizes,
            "claims": {solver: claims(each, sizes) for solver, each in found.items()},
        },
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
