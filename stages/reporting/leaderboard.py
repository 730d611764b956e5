"""The leaderboard: its rows, their grouping into tables, their order, and notes on them.

Nothing here depends on the machine's speed; `measured` adds seconds and memory.

Rows measured by different protocols never share a table. Methods that copy training images come after those that do
not, whatever their KID. Floors are not methods: they are not ranked, and come last.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import hypot
from statistics import mean, stdev
from typing import Any

import polars as pl

from multiscale.core import intact
from multiscale.core.models import AUTOENCODER
from multiscale.core.settings import Fetched
from multiscale.core.storage import read_json, read_sealed_json
from stages.common.paths import COSTS, MEASUREMENTS, MODELS, SAMPLES, histories, parts_of
from stages.reporting.trainings import APART, add_errors
from stages.schema import Experiment

Row = dict[str, Any]  # of the leaderboard, as leaderboard.json holds it
COLUMNS = {
    "method": "method",
    "works_on": "works on",
    "kid": "KID-{metric}",
    "trainings": "trainings",
    "kid_test": "KID-{metric}, test split",
    "kid_second": "KID-{second_metric}",
    "fd": "FD-{metric}",
    "sfid": "sFD-{metric}",
    "fd_dinov2": "FD-DINOv2",
    "inception_score": "IS-{metric}",
    "precision": "precision-{metric}",
    "recall": "recall-{metric}",
    "memorised": "memorised",
    "label_accuracy": "label accuracy",
    "diversity": "diversity",
    "clip_score": "CLIPScore",
    "pick_score": "PickScore",
    "network_calls": "calls",
    "flops_per_image": "GFLOP/image",
    "parameters": "parameters",
    "train_images": "training images",
}
COUNTED = ("network_calls", "flops_per_image", "parameters")
OF_PROMPTS = ("diversity", "clip_score", "pick_score")  # of images with prompts alone
BESIDE = ("sfid", "fd_dinov2")  # of some protocols alone
OF_SAMPLES = ("n", "seeds", "labels", "prompts")  # keys of the protocol that describe the samples, not the measurement
NEEDS_EQUAL_N = ("fd", "inception_score", "precision", "recall")
SPREAD = ("kid", "kid_second")  # what differs between trainings by more than by images
AVERAGED = ["kid", "kid_se", "kid_test", "kid_test_se", "kid_second", "kid_second_se", "memorised", "label_accuracy"]
AVERAGED += [*NEEDS_EQUAL_N, "inception_score_std"]
FURTHER = {  # keys of the protocols that have them, in words
    "against": "FD is against",
    "resolution": "Images were resized to",
    "sfid": "sFD is that of the features of places of",
    "dinov2": "DINOv2:",
}
FLOORS = {
    "real": "The floor real: held-out images",
    "autoencoder": "The floor autoencoder: their reconstructions, the loss of quality by the autoencoder alone",
}


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
    return row | {"trainings": len(trainings), "copies": any(each["copies"] for each in trainings)}


def _floor(name: str, params: Experiment) -> Row:
    works_on = {"real": "pixels", "autoencoder": "latents"}[name]
    about = {"method": name, "kind": "floor", "recipe": params.recipe, "works_on": works_on}
    return about | read_sealed_json(MEASUREMENTS / f"{name}.json")


def groups(rows: list[Row]) -> list[Group]:
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


def table(
    group: Group, accuracy: float | None, columns: Mapping[str, str] = COLUMNS
) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """Headings, rows of methods and rows of floors as text; see `headings`."""
    heads = headings(group, accuracy, columns)
    floors = [row | dict.fromkeys((*NEEDS_EQUAL_N, *BESIDE) if _of_other_n(row, group) else ()) for row in group.floors]

    def cells(rows: list[Row]) -> list[list[str]]:
        return [[cell(key, row) for key in heads] for row in rows]

    return list(heads.values()), cells(group.methods), cells(floors)


def headings(group: Group, accuracy: float | None, columns: Mapping[str, str] = COLUMNS) -> dict[str, str]:
    """The headings of the columns that a group has, by key; `accuracy` is that of the classifier on real images.

    They name the extractor, so that no metric is mistaken for FID. columns: key -> heading.
    """
    heads = {key: text.format(**group.protocol) for key, text in columns.items()}
    if not group.protocol["second_extractor"]:
        heads.pop("kid_second", None)
    if "prompts" in group.protocol and "label_accuracy" in heads:
        heads["label_accuracy"] = "alignment"  # the classifier reads what the prompt says
    for key in (*OF_PROMPTS, *BESIDE):
        if all(row.get(key) is None for row in group.methods):
            heads.pop(key, None)
    if "fd" in heads:
        heads["fd"] += "*" * (group.protocol["features"] > group.protocol["n"])
    if accuracy is not None:
        heads["label_accuracy"] += f" (the classifier on real images: {accuracy:.1%})"
    return heads


def _of_other_n(floor: Row, group: Group) -> bool:
    return bool(floor["protocol"]["n"] != group.protocol["n"])


def cell(name: str, row: Row) -> str:
    """A value of a row as text."""
    value = row.get(name)
    if value is None:
        return "-"
    if name == "method" and row.get("copies") and row["kind"] == "method":
        return f"{value} (copies)"
    if f"{name}_se" in row:
        return f"{value:.4f} +- {row[f'{name}_se']:.4f}"
    if name == "trainings" and value > 1:
        return f"{value} (sd {row['kid_spread']:.4f})"
    if name == "flops_per_image":
        return f"{value / 1e9:.3g}"
    if name == "parameters":
        return f"{value / 1e6:.2f} M"
    if name == "train_flops":
        return f"{value / 1e15:.3g}"
    if name.endswith("peak_memory_bytes"):
        return f"{value / 2**20:.0f} MiB"
    if name in ("label_accuracy", "memorised", "spread"):
        return f"{value:.1%}"
    if "seconds_per_image" in name:
        return f"{value:.3g}"
    if isinstance(value, float):
        digits = 0 if value.is_integer() or name == "train_seconds" else 4 if value < 10 else 1
        return f"{value:.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def notes(group: Group) -> list[str]:
    """The notes on a table: which differences are significant, what columns mean, the protocol."""
    about = group.protocol
    lines = _verdicts(group) + [f"{FLOORS[row['method']]}{_left_out(row, group)}." for row in group.floors]
    lines += ["Floors are not ranked."] if group.floors else []
    lines.append(
        "Intervals are one standard error over the images of one training, with the reference held fixed: they cover "
        "other sampling seeds, not other trainings."
    )
    if any(row["trainings"] > 1 for row in group.methods):
        lines.append("Several trainings of a method share a row: means, and the standard deviation of KID over them.")
    if about["n_test"]:
        lines.append(
            "Memorised is the share of images whose ratio of the distances to the nearest and the second nearest "
            "training image is below that of 99 % of held-out images: 1 % is expected if nothing is copied."
        )
    else:
        lines.append("Without a test split, neither KID against it nor copies of training images were measured.")
    if "prompts" in about:
        lines.append(
            "Alignment is the share of images in which the classifier reads what their prompt says. Diversity is the "
            "mean distance of the features of two images of one prompt, relative to real images of that caption: 1 is "
            "as diverse as real."
        )
        scored = [f"{COLUMNS[key]} by {about[key]}" for key in OF_PROMPTS if key in about]
        lines += [f"{', '.join(scored)}."] if scored else []
    if about["features"] > about["n"]:
        lines.append(
            f"* FD has {about['features']} features and N = {about['n']} images: the covariances are singular, and FD "
            "is too large by an amount that depends on N."
        )
    sizes = "both sets whole" if "prc_sets" in about else "sets of equal size: a random subset of the larger one"
    lines.append(f"Precision and recall ({about['prc_neighborhood']} neighbours) use {sizes}.")
    test = f"; test split {about['test']}: {about['n_test']} images" if about["n_test"] else ""
    lines.append(
        f"Extractor {about['extractor']} ({about['resize']}); N = {about['n']}, seeds {about['seeds']}, classes "
        f"{about['labels']}; reference {about['reference']}: {about['n_reference']} {_images(about)}"
        f"{test}; {about['estimator']}."
    )
    lines += [f"{text} {about[key]}." for key, text in FURTHER.items() if key in about]
    if about["second_extractor"]:
        lines.append(f"Second extractor {about['second_extractor']} ({about['second_resize']}).")
    return lines


def _images(about: Row) -> str:
    """What the images of the reference are."""
    return f"images of {about['against']}" if about.get("against_images") else "training images"


def _verdicts(group: Group) -> list[str]:
    """The best method by each extractor, the agreement of the rankings, and the methods that copy."""
    honest, copying = ([row for row in group.methods if row["copies"] is copies] for copies in (False, True))
    metrics = {"kid": group.protocol["metric"], "kid_second": group.protocol["second_metric"]}
    metrics = {key: metric for key, metric in metrics.items() if metric}
    lines = [_first(key, metric, honest) for key, metric in metrics.items() if len(honest) > 1]
    if len(metrics) > 1 and len(group.methods) > 1:
        from scipy.stats import kendalltau  # takes as long to import as the rest of a report to make

        tau = kendalltau(*([row[key] for row in group.methods] for key in metrics)).statistic
        names = " and ".join(f"KID-{metric}" for metric in metrics.values())
        lines.append(f"Kendall's tau of the rankings by {names}: {tau:.2f}.")
    if copying:
        names = ", ".join(row["method"] for row in copying)
        lines.append(f"Methods that copy training images, ranked last: {names}.")
    return lines


def _left_out(floor: Row, group: Group) -> str:
    given = floor["protocol"]["n"]
    return f" (N = {given}: metrics that depend on N are left out)" if _of_other_n(floor, group) else ""


def _first(key: str, metric: str, rows: list[Row]) -> str:
    """The best method, and whether its lead is significant: over trainings if there are several, else over images."""
    first, second = sorted(rows, key=lambda row: row[key])[:2]
    error = hypot(*(standard_error(key, row) for row in (first, second)))
    difference = second[key] - first[key]
    verdict = "significant" if difference > APART * error else "not significant"
    alone = ", over images alone" if first["trainings"] == second["trainings"] == 1 else ""
    return (
        f"Best KID-{metric}: {first['method']}, {difference:.4f} below {second['method']}, {verdict} at {APART} "
        f"standard errors of the difference ({APART * error:.4f}{alone})."
    )


def standard_error(key: str, row: Row) -> float:
    """Of a column: over trainings if there are several and it has a spread over them, else over images or prompts."""
    over_trainings = row.get(f"{key}_training_se")
    return float(row[f"{key}_se"] if over_trainings is None else over_trainings)


def markdown(
    found: list[Group], accuracy: float | None, columns: Mapping[str, str] = COLUMNS, remarks: Sequence[str] = ()
) -> str:
    """The leaderboard as Markdown: a table for each protocol, with floors in italics at its foot.

    columns: key -> heading, with `remarks` below each table.
    """
    parts = []
    for group in found:
        headings, methods, floors = table(group, accuracy, columns)
        lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
        lines += ["| " + " | ".join(row) + " |" for row in [*methods, *([f"*{row[0]}*", *row[1:]] for row in floors)]]
        parts.append("\n".join([*lines, "", " ".join([*notes(group), *remarks])]))
    return "\n\n".join(parts) + "\n"
