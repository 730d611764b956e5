"""The leaderboard: its rows, which of them may stand in one table, their order, and what has to be said beside them.

Rows measured by different protocols are never put into one table. A method that copies its training images comes after
those that do not, whatever its KID. Floors are no methods: they have no place, and stand below.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import hypot
from statistics import mean, stdev

from scipy.stats import kendalltau

from multiscale.core.storage import read_json
from stages.common.paths import METRICS, TIMINGS

COLUMNS = {
    "method": "method",
    "works_on": "works on",
    "kid": "KID-{metric}",
    "trainings": "trainings",
    "kid_test": "KID-{metric}, test split",
    "kid_second": "KID-{second_metric}",
    "fd": "FD-{metric}",
    "inception_score": "IS-{metric}",
    "precision": "precision-{metric}",
    "recall": "recall-{metric}",
    "memorised": "memorised",
    "label_accuracy": "label accuracy",
    "seconds_per_image": "s/image",
    "seconds_per_image_batch_1": "s/image, batch 1",
    "network_calls": "calls",
    "flops_per_image": "GFLOP/image",
    "parameters": "parameters",
    "train_images": "training images",
    "train_seconds": "training s",
    "peak_memory_bytes": "peak memory",
}
OF_SAMPLES = ("n", "seeds", "labels")  # what the protocol says of the images and not of the measure
NEEDS_EQUAL_N = ("fd", "inception_score", "precision", "recall")
AVERAGED = ("kid", "kid_se", "kid_test", "kid_test_se", "kid_second", "kid_second_se", "memorised", "label_accuracy")
AVERAGED += (*NEEDS_EQUAL_N, "inception_score_std", "seconds_per_image", "seconds_per_image_batch_1", "train_seconds")
APART = 2  # standard errors of their difference, from which two rows are told apart
FLOORS = {
    "real": "The floor real: held-out images",
    "autoencoder": "The floor autoencoder: their reconstructions, what the autoencoder alone costs methods on latents",
}


@dataclass(frozen=True)
class Group:
    """Rows that one protocol has measured: methods from the first place on, and floors."""

    protocol: dict
    methods: list[dict]
    floors: list[dict]


def rows_of(params) -> list[dict]:
    """The row of each method, then of each floor; several trainings of a method by one protocol are one row."""
    trained: dict[tuple[str, str], list[dict]] = {}
    for name, section in params.methods.items():
        row = _method(name, params)
        trained.setdefault((section.repeat_of or name, _as_key(row["protocol"])), []).append(row)
    return [*map(_averaged, trained.values()), *(_floor(name, params) for name in params.evaluate.floors)]


def _as_key(protocol: dict) -> str:
    return json.dumps(protocol, sort_keys=True)


def _method(name: str, params) -> dict:
    """One training of a method: its quality, its cost and the protocol that both were measured by."""
    metrics, cost = read_json(METRICS / f"{name}.json"), read_json(TIMINGS / f"sample-{name}.json")
    parts = {part: about for part, about in (params.parts | params.students).items() if about.method == name}
    timings = [read_json(TIMINGS / f"{part}.json") for part in parts]
    latents = any(params.decompose[about.reads].reads == "latents" for about in parts.values())
    return {
        "method": name,
        "kind": "method",
        "recipe": params.recipe,
        "works_on": "latents" if latents and params.vae.kind != "none" else "pixels",
        **metrics,
        "seconds_per_image": cost["seconds_per_image"],
        "seconds_per_image_batch_1": cost["seconds_per_image_batch_1"],
        "batch": cost["batch"],
        "network_calls": cost["network_calls"],
        "flops_per_image": cost["flops_per_image"],
        "parameters": cost["parameters"],
        "train_images": sum(about.training.images for about in parts.values()),
        "train_seconds": round(sum(timing["train_seconds"] for timing in timings), 2),
        "peak_memory_bytes": cost["peak_memory_bytes"],
        "train_peak_memory_bytes": max(timing["peak_memory_bytes"] for timing in timings),
        "device": cost["device"],
    }


def _averaged(trainings: list[dict]) -> dict:
    """The row of a method: means over its trainings, and the standard deviation of KID among them."""
    row = dict(trainings[0])
    for key in AVERAGED:
        values = [each.get(key) for each in trainings]
        row[key] = None if None in values else mean(values)
    for key in ("kid", "kid_second"):
        values = [each.get(key) for each in trainings]
        row[f"{key}_spread"] = stdev(values) if len(values) > 1 and None not in values else None
    return row | {"trainings": len(trainings), "copies": any(each["copies"] for each in trainings)}


def _floor(name: str, params) -> dict:
    works_on = {"real": "pixels", "autoencoder": "latents"}[name]
    about = {"method": name, "kind": "floor", "recipe": params.recipe, "works_on": works_on}
    return about | read_json(METRICS / f"{name}.json")


def groups(rows: list[dict]) -> list[Group]:
    """Rows that may be compared, the best KID first; a floor stands below all whose measure it shares."""
    found: dict[str, list[dict]] = {}
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


def _measure(row: dict) -> dict:
    return {key: value for key, value in row["protocol"].items() if key not in OF_SAMPLES}


def table(group: Group, judge: float | None) -> tuple[list[str], list[list[str]], list[list[str]]]:
    """Headings, rows of methods and rows of floors, as people read them; `judge` is the judge's own accuracy.

    Quality bears its extractor's name, so that none is mistaken for FID.
    """
    columns = {key: text.format(**group.protocol) for key, text in COLUMNS.items()}
    if not group.protocol["second_extractor"]:
        del columns["kid_second"]
    columns["fd"] += "*" * (group.protocol["features"] > group.protocol["n"])
    if judge is not None:
        columns["label_accuracy"] += f" (the judge on real images: {judge:.1%})"
    floors = [row | dict.fromkeys(NEEDS_EQUAL_N if _of_other_n(row, group) else ()) for row in group.floors]
    methods, floors = ([[cell(key, row) for key in columns] for row in rows] for rows in (group.methods, floors))
    return list(columns.values()), methods, floors


def _of_other_n(floor: dict, group: Group) -> bool:
    return floor["protocol"]["n"] != group.protocol["n"]


def cell(name: str, row: dict) -> str:
    """A value as people read it."""
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
    if name == "peak_memory_bytes":
        return f"{value / 2**20:.0f} MiB"
    if name in ("label_accuracy", "memorised"):
        return f"{value:.1%}"
    if name.startswith("seconds_per_image"):
        return f"{value:.3g}"
    if isinstance(value, float):
        digits = 0 if value.is_integer() or name == "train_seconds" else 4 if value < 10 else 1
        return f"{value:.{digits}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def notes(group: Group) -> list[str]:
    """What has to be said beside a table, note by note: what tells rows apart, what they mean, the protocol."""
    about = group.protocol
    lines = _verdicts(group) + [f"{FLOORS[row['method']]}{_left_out(row, group)}." for row in group.floors]
    lines += ["Floors have no place."] if group.floors else []
    lines.append(
        "An interval is one standard error over the images of one training, the reference held fixed: how far a row "
        "moves with other seeds, not with another training."
    )
    if any(row["trainings"] > 1 for row in group.methods):
        lines.append("Several trainings of a method are one row: means, and the standard deviation of KID among them.")
    if about["n_test"]:
        lines.append(
            "Memorised is the share of images nearer to one training image, in units of the distance to the second "
            "nearest, than 99 % of held-out images are: 1 % is expected where nothing is copied."
        )
    else:
        lines.append("There is no test split: neither KID against it nor copies of training images were measured.")
    if about["features"] > about["n"]:
        lines.append(
            f"* FD has {about['features']} features and N = {about['n']} images: the covariances are singular, and FD "
            "is too large by an amount that depends on N."
        )
    lines.append(
        f"Precision and recall ({about['prc_neighborhood']} neighbours) compare equal counts: the larger set is cut at "
        "random."
    )
    test = f"; test split {about['test']}: {about['n_test']} images" if about["n_test"] else ""
    lines.append(
        f"Extractor {about['extractor']} ({about['resize']}); N = {about['n']}, seeds {about['seeds']}, classes "
        f"{about['labels']}; reference {about['reference']}: {about['n_reference']} training images"
        f"{test}; {about['estimator']}."
    )
    if about["second_extractor"]:
        lines.append(f"Second extractor {about['second_extractor']} ({about['second_resize']}).")
    return lines


def _verdicts(group: Group) -> list[str]:
    """Who is first by each extractor, whether the two rank alike, and who copies."""
    honest, copying = ([row for row in group.methods if row["copies"] is copies] for copies in (False, True))
    metrics = {"kid": group.protocol["metric"], "kid_second": group.protocol["second_metric"]}
    metrics = {key: metric for key, metric in metrics.items() if metric}
    lines = [_first(key, metric, honest) for key, metric in metrics.items() if len(honest) > 1]
    if len(metrics) > 1 and len(group.methods) > 1:
        tau = kendalltau(*([row[key] for row in group.methods] for key in metrics)).statistic
        names = " and ".join(f"KID-{metric}" for metric in metrics.values())
        lines.append(f"Kendall's tau of the rankings by {names}: {tau:.2f}.")
    if copying:
        names = ", ".join(row["method"] for row in copying)
        lines.append(f"Copies of training images: {names}; they come after those that do not copy.")
    return lines


def _left_out(floor: dict, group: Group) -> str:
    given = floor["protocol"]["n"]
    return f" (N = {given}: what depends on N is left out)" if _of_other_n(floor, group) else ""


def _first(key: str, metric: str, rows: list[dict]) -> str:
    """Who is first and whether the second is told apart from it, by the spread over trainings where there is one."""
    first, second = sorted(rows, key=lambda row: row[key])[:2]
    error = hypot(*(_error(key, row) for row in (first, second)))
    difference = second[key] - first[key]
    verdict = "told apart" if difference > APART * error else "not told apart"
    alone = ", over images alone" if first["trainings"] == second["trainings"] == 1 else ""
    return (
        f"First by KID-{metric}: {first['method']}, {difference:.4f} before {second['method']}, {verdict} at {APART} "
        f"standard errors of the difference ({APART * error:.4f}{alone})."
    )


def _error(key: str, row: dict) -> float:
    spread = row[f"{key}_spread"]
    return row[f"{key}_se"] if spread is None else spread / row["trainings"] ** 0.5


def markdown(found: list[Group], judge: float | None) -> str:
    """The leaderboard as Markdown, one table a protocol, floors in italics at its foot."""
    parts = []
    for group in found:
        headings, methods, floors = table(group, judge)
        lines = ["| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
        lines += ["| " + " | ".join(row) + " |" for row in [*methods, *([f"*{row[0]}*", *row[1:]] for row in floors)]]
        parts.append("\n".join([*lines, "", " ".join(notes(group))]))
    return "\n\n".join(parts) + "\n"
