"""Times the sampling of all methods, in turn and in one process, and collects the cost of an image from each.

Writes reports/costs.json, which is the same on every machine, and reports/timing/sampling.json, which is not: seconds,
their spread, and when the machine was busy. Every round times each method once, between two runs of a reference
workload, in a different order.
"""

from __future__ import annotations

from stages.common.harness import command

if __name__ == "__main__":  # first: the imports below take seconds
    command(__doc__)

import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from multiscale import model, sampling, timing
from multiscale.core import intact
from multiscale.core.device import default_device, describe
from multiscale.core.pixels import to_pixels
from multiscale.core.storage import read_json, write_json
from stages.common import timings
from stages.common.cluster import pool
from stages.common.harness import progress
from stages.common.paths import COSTS, MODELS, SAMPLES
from stages.schema import Experiment


def calls(name: str, batch: int, params: Experiment) -> list[Callable[[], object]]:
    """Sampling a batch from a method, one image, and a batch with each of its further numbers of steps.

    All are of class 0: seconds do not depend on the class.
    """
    method = params.methods[name]
    own, *others = (
        model.load(MODELS / name, settings, params.sample.precision)
        for settings in (method, *map(method.at, method.steps))
    )

    def sample(sampler: sampling.Sampler, batch: int) -> None:
        to_pixels(sampler(list(range(batch)), torch.zeros(batch, dtype=torch.long)))

    return [partial(sample, own, batch), partial(sample, own, 1), *(partial(sample, each, batch) for each in others)]


class Bench(timing.Stopwatch):
    """The methods' samplers on one worker."""

    def __init__(self, names: Sequence[str], batch: int, params: Experiment):
        super().__init__({name: calls(name, batch, params) for name in names})

    def machine(self) -> dict[str, Any]:
        """The device, and the load of the last minute, which includes this process."""
        return {"device": describe(default_device()), "load_average": round(os.getloadavg()[0], 2)}


def measure(names: Sequence[str], params: Experiment) -> dict[str, Any]:
    """Seconds per image of methods in batches of 1 and B, with their spread and the busy rounds, and of other steps."""
    batch, count, title = params.timing.batch or params.sample.batch, params.timing.rounds, "timing"
    run = params.run.model_copy(update={"workers": min(1, params.run.workers)})
    rounds: list[dict[str, list[timing.Turn]]] = []
    with (
        pool(title, run, partial(Bench, names, batch, params)) as workers,
        progress(title, count, unit="round") as reach,
    ):
        for turns in workers.map("round", ((index,) for index in range(count))):
            rounds.append(turns)
            reach(len(rounds))
        (machine,), (clock,) = workers.map("machine", [()]), workers.map("clock", [()])  # not those of this process
    least = timing.best(rounds)

    def row(name: str) -> dict[str, Any]:
        groups = [turns[name] for turns in rounds]
        many, one, *others = (timing.figures(turns, least, clock) for turns in zip(*groups))
        found = _per_image(many, batch) | _per_image(one, 1, "_batch_1")
        seconds = {str(steps): each.seconds / batch for steps, each in zip(params.methods[name].steps, others)}
        return found | ({"seconds_per_image_of_steps": seconds} if seconds else {})

    return {
        **machine,
        "batch": batch,
        "rounds": count,
        "reference": {"flops": timing.REFERENCE_FLOPS, "seconds": least.wall, "processor_seconds": least.processor},
        "methods": {name: row(name) for name in names},
    }


def _per_image(figures: timing.Figures, batch: int, suffix: str = "") -> dict[str, Any]:
    return {
        f"seconds_per_image{suffix}": figures.seconds / batch,
        f"processor_seconds_per_image{suffix}": figures.processor_seconds / batch,
        f"ratio{suffix}": figures.ratio,
        f"spread{suffix}": figures.spread,
        f"busy_rounds{suffix}": figures.busy,
    }


def main(params: Experiment) -> None:
    for name in params.methods:
        intact.check_folder(SAMPLES / name, COSTS.name)
    write_json(COSTS, {name: read_json(SAMPLES / name / COSTS.name) for name in params.methods})
    rows = [name for name, section in params.methods.items() if section.repeat_of is None]
    timings.write("sampling", COSTS, measure(rows, params))
