"""What a sweep leaves: reports/sweeps/NAME (all trials in one Parquet, a ranked table, two pictures), and a recipe."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import polars as pl
from ruamel.yaml import YAML

from flows import charts
from flows.space import Plan
from multiscale.core.storage import atomic_file
from stages import recipe
from stages.common.paths import REPORTS
from stages.common.settings import RECIPES, BadInput
from stages.schema import Experiment

SHOWN = ("kid", "kid_se", "fd", "memorised", "label_accuracy", "seconds_per_image")
HISTORY = pl.List(pl.Struct({"part": pl.String, "images": pl.Int64, "loss": pl.Float64}))


def write(plan: Plan, records: list[dict[str, Any]]) -> Path:
    """Writes everything and gives the table's path. Raises BadInput where no trial has finished."""
    folder = REPORTS / "sweeps" / plan.name
    rows = ranked(plan, records)
    done = [row for row in rows if row["state"] == "done"]
    with atomic_file(folder / "trials.parquet") as temporary:
        frame(rows).write_parquet(temporary)
    with atomic_file(folder / "trials.md") as temporary:
        temporary.write_text(table(plan, rows))
    if not done:
        raise BadInput(f"{plan.file}: no trial has finished; the first said: {rows[0].get('error')}; see {folder}")
    charts.settings(plan, rows, folder / "settings.png")
    charts.parallel(plan, rows, folder / "parallel.png")
    with atomic_file(RECIPES / f"{plan.name}-best.yaml") as temporary:
        temporary.write_text(winner(plan, done[0]))
    return folder / "trials.md"


def ranked(plan: Plan, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records, the best first, copies of training images after all others; then those stopped or failed."""
    sign = 1 if plan.sweep.mode == "min" else -1
    done = [record for record in records if record["state"] == "done"]
    rest = sorted((record for record in records if record["state"] != "done"), key=lambda record: record["state"])
    place = lambda metrics: (metrics["copies"], sign * metrics[plan.sweep.metric])  # noqa: E731
    return sorted(done, key=lambda record: place(record["metrics"])) + rest[::-1]


def frame(rows: list[dict[str, Any]]) -> pl.DataFrame:
    """One row a trial: rank, state, each setting, each metric, and the history as a list."""
    keys = list(dict.fromkeys(key for row in rows for key in row["point"]))
    metrics = list(dict.fromkeys(key for row in rows for key in row.get("metrics", {})))
    columns: dict[str, Any] = {
        "rank": [rank if row["state"] == "done" else None for rank, row in enumerate(rows, 1)],
        "state": [row["state"] for row in rows],
        "error": pl.Series([row.get("error") for row in rows], dtype=pl.String),
        "seconds": pl.Series([row.get("seconds") for row in rows], dtype=pl.Float64),
    }
    columns |= {key: _column([row["point"].get(key) for row in rows]) for key in keys}
    columns |= {key: pl.Series([row.get("metrics", {}).get(key) for row in rows], dtype=pl.Float64) for key in metrics}
    columns["history"] = pl.Series([row.get("history") for row in rows], dtype=HISTORY)
    return pl.DataFrame(columns)


def _column(values: list) -> list:
    """Numbers as they are, anything else as JSON text."""
    plain = all(value is None or isinstance(value, int | float) for value in values)
    return values if plain else [None if value is None else json.dumps(value) for value in values]


def table(plan: Plan, rows: list[dict[str, Any]]) -> str:
    """The ranked trials as Markdown."""
    sweep = plan.sweep
    keys = list(dict.fromkeys(key for row in rows for key in row["point"]))
    shown = list(dict.fromkeys((sweep.metric, *SHOWN)))
    better = "lower" if sweep.mode == "min" else "higher"
    lines = [
        f"# Sweep {plan.name}: {sweep.method} by {sweep.metric} ({better} is better)",
        "",
        f"{sweep.budget:g} of each part's training images, {sweep.images} samples a trial; recipe "
        f"{plan.experiment['recipe']}. A setting left blank was not varied in that trial.",
        "",
        _row(["rank", *keys, *shown, "seconds", "state"]),
        _row(["---"] * (len(keys) + len(shown) + 3)),
    ]
    for rank, row in enumerate(rows, 1):
        metrics = row.get("metrics", {})
        cells = [row["point"].get(key) for key in keys] + [metrics.get(key) for key in shown] + [row.get("seconds")]
        state = f"{row['state']}: {row['error']}" if row.get("error") else row["state"]
        lines.append(_row([rank if metrics else "", *map(_cell, cells), state]))
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _row(cells: list) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def winner(plan: Plan, best: dict[str, Any]) -> str:
    """The recipe of the best trial: the experiment's own, and the keys in which it differs."""
    name = plan.experiment["recipe"]
    if name not in recipe.available():
        raise BadInput(f"params/experiment.yaml: recipe: {name!r}; allowed: one of {', '.join(recipe.available())}")
    tied = {"recipe", "run"}  # to the recipe's name, and to this machine
    base = recipe.experiment_of(name).model_dump(exclude=tied)
    chosen = Experiment.model_validate(plan.changed(best["point"])).model_dump(exclude=tied)
    yaml, text = YAML(), io.StringIO()
    yaml.default_flow_style = None
    yaml.dump({"extends": name, **difference(base, chosen)}, text)
    value = best["metrics"][plan.sweep.metric]
    return f"# The best of the sweep {plan.name}: {plan.sweep.metric} {value:.4g} in its trial.\n{text.getvalue()}"


def difference(base: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What a recipe says to make `other` of `base`: changed keys alone; lists whole; null for what is gone."""
    found: dict[str, Any] = {}
    for key in [*base, *(key for key in other if key not in base)]:
        before, after = base.get(key), other.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            if inside := difference(before, after):
                found[key] = inside
        elif before != after:
            found[key] = after
    return found
