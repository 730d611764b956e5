"""The rows of the leaderboard: of a method, of its trainings, of a floor; and those that may share a table.

Rows measured by different protocols are in different groups. Methods that copy training images come after those that do
not, whatever their KID. Floors are not methods: they are not ranked, and come last.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

import polars as pl

from multiscale.core import intact
from multiscale.core.models import AUTOENCODER
from multiscale.core.settings import Fetched
from multiscale.core.storage import read_json, read_sealed_json
from stages.common.paths import COSTS, MEASUREMENTS, MODELS, SAMPLES, histories, parts_of
from stages.reporting.trainings import add_errors
from stages.schema import Experiment

Row = dict[str, Any]  # of the leaderboard, as leaderboard.json holds it
COUNTED = ("network_calls", "flops_per_image", "parameters")
OF_PROMPTS = ("diversity", "clip_score", "pick_score")  # of images with prompts alone
BESIDE = ("sfid", "fd_dinov2")  # of some protocols alone
OF_SAMPLES = ("n", "seeds", "labels", "prompts")  # keys of the protocol that describe the samples, not the measurement
NEEDS_EQUAL_N = ("fd", "inception_score", "precision", "recall")
SPREAD = ("kid", "kid_second")  # what differs between trainings by more than by images
AVERAGED = ["kid", "kid_se", "kid_test", "kid_test_se", "kid_second", "kid_second_se", "memorised", "label_accuracy"]
AVERAGED += [*NEEDS_EQUAL_N, "inception_score_std"]
OF_STEPS = ("kid", "kid_se", "label_accuracy")  # of another number of steps


@dataclass(frozen=True)
class Group:
    """Rows measured by one protocol: methods, best first, and floors."""

    protocol: Row
    methods: list[Row]
    floors: list[Row]


def rows_of(params: Experiment) -> list[Row]:
    """The rows of the methods, then of the floors; trainings of a method by the same protocol share a row of means."""
    trained: dict[tuple[str, str], list[Row]] = {}
    for name, section in params.methods.items():
        row = _method(name, params)
        trained.setdefault((section.repeat_of or name, _as_key(row["protocol"])), []).append(row)
    methods = [*map(_averaged, trained.values())]
    for key in SPREAD:
        add_errors(methods, key)
    return [*methods, *(_floor(name, params) for name in params.evaluate.floors)]


def methods_of(row: str, params: Experiment) -> list[str]:
    """The methods that share a row: the one that names it, and those that repeat it."""
    return [row, *(name for name, section in params.methods.items() if section.repeat_of == row)]


def _as_key(protocol: Row) -> str:
    return json.dumps(protocol, sort_keys=True)


def _method(name: str, params: Experiment) -> Row:
    """One training of a method: its quality, its cost, and the protocol of their measurement."""
    parts = parts_of(name)
    intact.check_folder(SAMPLES / name, COSTS.name)
    for part, section in params.parts_of(name).items():
        if not isinstance(section, Fetched):  # which has no history
            intact.check_folder(MODELS / name / part, "history.jsonl")
    metrics, cost = read_sealed_json(MEASUREMENTS / f"{name}.json"), read_json(SAMPLES / name / COSTS.name)
    return {
        "method": name,
        "kind": "method",
        "recipe": params.recipe,
        "works_on": "latents" if any((part / AUTOENCODER).is_dir() for part in parts) else "pixels",
        **metrics,
        **{key: cost[key] for key in COUNTED},
        "train_images": sum(pl.read_ndjson(path)["images"][-1] for path in histories(name)),
    }


def _averaged(trainings: list[Row]) -> Row:
    """The row of a method: means over its trainings, and the standard deviation of KID over them."""
    row = dict(trainings[0])
    of_prompts = (f"{name}{end}" for name in OF_PROMPTS if name in row for end in ("", "_se"))
    for key in (*AVERAGED, *of_prompts, *(name for name in BESIDE if name in row)):
        values: list[Any] = [each.get(key) for each in trainings]
        row[key] = None if None in values else mean(values)
    for key in SPREAD:
        values = [each.get(key) for each in trainings]
        row[f"{key}_spread"] = stdev(values) if len(values) > 1 and None not in values else None
    if "steps" in row:
        row["steps"] = _averaged_steps(trainings)
    return row | {"trainings": len(trainings), "copies": any(each["copies"] for each in trainings)}


def _averaged_steps(trainings: list[Row]) -> list[Row]:
    """What was measured with each further number of steps, means over the trainings; of those that all of them have."""
    by_steps = [{each["steps"]: each for each in training.get("steps") or []} for training in trainings]
    found = []
    for steps, first in by_steps[0].items():
        if all(steps in other for other in by_steps):
            values = {key: [other[steps][key] for other in by_steps] for key in OF_STEPS}
            found.append(first | {key: None if None in each else mean(each) for key, each in values.items()})
    return found


def _floor(name: str, params: Experiment) -> Row:
    works_on = {"real": "pixels", "autoencoder": "latents"}[name]
    about = {"method": name, "kind": "floor", "recipe": params.recipe, "works_on": works_on}
    return about | read_sealed_json(MEASUREMENTS / f"{name}.json")


def grouped(rows: list[Row]) -> list[Group]:
    """Comparable rows, best KID first; a floor is in every group whose measurement it shares."""
    found: dict[str, list[Row]] = {}
    for row in (row for row in rows if row["kind"] == "method"):
        found.setdefault(_as_key(row["protocol"]), []).append(row)
    return [
        Group(
            methods[0]["protocol"],
            sorted(methods, key=lambda row: (row["copies"], row["kid"])),
            [row for row in rows if row["kind"] == "floor" and _measure(row) == _measure(methods[0])],
        )
        for _, methods in sorted(found.items())
    ]


def _measure(row: Row) -> Row:
    return {key: value for key, value in row["protocol"].items() if key not in OF_SAMPLES}
