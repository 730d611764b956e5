"""Seconds and memory of the leaderboard's rows, as measured on this machine: no tracked file holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from statistics import mean, stdev
from typing import Any

import polars as pl

from multiscale import timing
from stages.common import timings
from stages.common.paths import COSTS, SAMPLES, histories
from stages.reporting import leaderboard
from stages.reporting.rows import Group, Row, methods_of
from stages.reporting.trainings import add_errors
from stages.schema import Experiment

COLUMNS = leaderboard.COLUMNS | {
    "seconds_per_image": "s/image",
    "spread": "spread",
    "processor_seconds_per_image": "processor s/image",
    "seconds_per_image_batch_1": "s/image, batch 1",
    "busy_rounds": "busy rounds",
    "train_seconds": "training s",
    "train_flops": "training PFLOP",
    "train_peak_memory_bytes": "training memory",
    "peak_memory_bytes": "peak memory",
}
COMMAND = "dvc repro -f -s timing report"


def of_sampling() -> dict[str, Any]:
    """What the stage `timing` wrote; empty if nothing, or if it timed another experiment."""
    return timings.read("sampling", COSTS)


def with_seconds(groups: list[Group], sampling: dict[str, Any], params: Experiment) -> list[Group]:
    """The groups with what was measured on this machine in the rows of their methods."""

    def added(rows: list[Row]) -> list[Row]:
        found = [row | _measured(row, sampling, params) for row in rows]
        add_errors(found, "train_seconds")
        return found

    return [replace(group, methods=added(group.methods)) for group in groups]


def _measured(row: Row, sampling: dict[str, Any], params: Experiment) -> dict[str, Any]:
    """Of a row: the seconds of sampling; means over its trainings of their seconds and of the peak memory."""
    name = row["method"]
    trainings = methods_of(name, params)
    seconds = [_of_training("train_seconds", sum, each) for each in trainings]
    known = [each for each in seconds if each is not None]
    samplings = [timings.read(f"sample-{each}", SAMPLES / each / COSTS.name) for each in trainings]
    return {
        **sampling.get("methods", {}).get(params.methods[name].repeat_of or name, {}),
        "train_seconds": _mean(seconds),
        "train_seconds_spread": stdev(known) if len(known) == len(seconds) > 1 else None,
        "train_flops": _mean([_of_training("flops", sum, each) for each in trainings]),
        "train_peak_memory_bytes": _mean([_of_training("peak_memory_bytes", max, each) for each in trainings]),
        "peak_memory_bytes": _mean([each.get("peak_memory_bytes") for each in samplings]),
    }


def _of_training(key: str, over: Callable[[list[float]], float], method: str) -> float | None:
    """What was measured of all parts of a method in one; None unless all were trained on this machine."""
    parts = [timings.read(path.parent.name, path).get(key) for path in histories(method)]
    known = [each for each in parts if each is not None]
    return over(known) if known and len(known) == len(parts) else None


def flops_per_image(methods: Iterable[str]) -> dict[str, float]:
    """Operations for an image in the training of each part, where they were counted."""
    found = {path: timings.read(path.parent.name, path) for method in methods for path in histories(method)}
    images = {path: pl.read_ndjson(path, infer_schema_length=None)["images"][-1] for path in found}
    return {path.parent.name: each["flops"] / images[path] for path, each in found.items() if each.get("flops")}


def _mean(values: list[Any]) -> float | None:
    return None if None in values else mean(values)


def remarks(sampling: dict[str, Any]) -> list[str]:
    """How the seconds were measured; where they were not, how to measure them."""
    rest = "Seconds of training and the peak memory of sampling are those of the run on this machine, if it was here."
    if not sampling:
        return [f"Seconds per image were not measured on this machine: `{COMMAND}` measures them.", rest]
    reference = sampling["reference"]
    return [
        f"Seconds per image on {sampling['device']}: batches of {sampling['batch']}; the median over "
        f"{sampling['rounds']} rounds of the ratio to a reference workload ({reference['flops'] / 1e9:.1f} GFLOP in "
        f"float32, timed before and after), times the best time of that workload ({reference['seconds']:.3f} s). The "
        "spread is the interquartile range of the ratio over its median.",
        f"Busy rounds are those in which wall time exceeded {timing.WAITED:g} times processor time, or other processes "
        f"used more than {timing.SHARED:.0%} of the processors; load average {sampling['load_average']:g}.",
        rest,
    ]
