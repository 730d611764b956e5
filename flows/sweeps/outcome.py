"""What a sweep leaves: reports/sweeps/NAME (all trials in one Parquet, a ranked table, two pictures), and a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl

from flows.sweeps import charts
from flows.sweeps.space import Plan
from multiscale.core.storage import atomic_file, write_text
from stages import recipe
from stages.common.errors import BadInput, refuse
from stages.common.paths import EXPERIMENT, RECIPES, REPORTS
from stages.common.reading import named
from stages.common.settings import TAGS
from stages.reporting.tables import markdown
from stages.schema.rendering import plain

SHOWN = ("kid", "kid_se", "fd", "memorised", "label_accuracy", "seconds_per_image")
NUMBERS = {"images": pl.Int64, "loss": pl.Float64, "validation_loss": pl.Float64}
NAMED = (*recipe.REPEATED, "decompose", "text")  # sections of which an experiment names the entries
HISTORY = pl.List(pl.Struct({"part": pl.String, **NUMBERS}))


def write(plan: Plan, records: list[dict[str, Any]]) -> Path:
    """Writes everything and gives the table's path. Raises BadInput where no trial has finished."""
    folder = REPORTS / "sweeps" / plan.name
    rows = ranked(plan, records)
    keys = list(dict.fromkeys(key for row in rows for key in row["point"]))
    with atomic_file(folder / "trials.parquet") as temporary:
        frame(keys, rows).write_parquet(temporary)
    write_text(folder / "trials.md", table(plan, keys, rows))
    if rows[0]["state"] != "done":
        raise BadInput(f"{plan.file}: no trial has finished; the first said: {rows[0].get('error')}; see {folder}")
    charts.settings(plan, keys, rows, folder / "settings.png")
    charts.parallel(plan, keys, rows, folder / "parallel.png")
    write_text(RECIPES / f"{plan.name}-best.yaml", winner(plan, rows[0]))
    return folder / "trials.md"


def ranked(plan: Plan, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records, the best first, copies of training images after all others; then those stopped or failed."""
    sign = 1 if plan.sweep.mode == "min" else -1
    done = [record for record in records if record["state"] == "done"]
    rest = sorted((record for record in records if record["state"] != "done"), key=lambda record: record["state"])
    done.sort(key=lambda record: (record["metrics"]["copies"], sign * record["metrics"][plan.sweep.metric]))
    return done + rest[::-1]


def frame(keys: list[str], rows: list[dict[str, Any]]) -> pl.DataFrame:
    """One row a trial: rank, state, each setting, each metric, and the history as a list."""
    columns: dict[str, Any] = {
        "rank": [rank if row["state"] == "done" else None for rank, row in enumerate(rows, 1)],
        "state": [row["state"] for row in rows],
        "error": pl.Series([row.get("error") for row in rows], dtype=pl.String),
        "seconds": pl.Series([row.get("seconds") for row in rows], dtype=pl.Float64),
    }
    for key in keys:  # numbers as they are, anything else as JSON
        values = [row["point"].get(key) for row in rows]
        if not all(value is None or isinstance(value, int | float) for value in values):
            values = [None if value is None else json.dumps(value) for value in values]
        elif any(isinstance(value, float) for value in values):  # 1 beside 1.5
            values = [None if value is None else float(value) for value in values]
        columns[key] = values
    for key in dict.fromkeys(key for row in rows for key in row.get("metrics", {})):
        columns[key] = pl.Series([row.get("metrics", {}).get(key) for row in rows], dtype=pl.Float64)
    return pl.DataFrame(columns | {"history": pl.Series([row.get("history") for row in rows], dtype=HISTORY)})


def table(plan: Plan, keys: list[str], rows: list[dict[str, Any]]) -> str:
    """The ranked trials as Markdown."""
    sweep = plan.sweep
    shown = list(dict.fromkeys((sweep.metric, *SHOWN)))
    better = "lower" if sweep.mode == "min" else "higher"
    about = [
        f"# Sweep {plan.name}: {sweep.method} by {sweep.metric} ({better} is better)",
        "",
        f"{sweep.budget:g} of each part's training images, {sweep.images} samples a trial; recipe "
        f"{plan.experiment.recipe}. A setting left blank was not varied in that trial.",
        "",
    ]
    lines = []
    for rank, row in enumerate(rows, 1):
        metrics = row.get("metrics", {})
        cells = [*map(row["point"].get, keys), *map(metrics.get, shown), row.get("seconds")]
        state = f"{row['state']}: {row['error']}" if row.get("error") else row["state"]
        lines.append(list(map(_text, [rank if metrics else "", *cells, state])))
    return "\n".join([*about, markdown(["rank", *keys, *shown, "seconds", "state"], lines)]) + "\n"


def _text(cell: Any) -> str:
    return "" if cell is None else f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def winner(plan: Plan, best: dict[str, Any]) -> str:
    """The recipe of the best trial: it extends the experiment's own by the keys in which it differs.

    Where that one is built on the recipe that is written here, it extends what this one extended. It stands on its own
    where there is nothing to extend, or where the experiment lacks what a recipe that extends cannot take away.
    """
    name, own = plan.experiment.recipe, f"{plan.name}-best"
    if name not in named(RECIPES):
        raise refuse(EXPERIMENT, "recipe", name, f"one of {', '.join(named(RECIPES))}")
    chain = list(recipe.chain(name))
    extended = next(iter(chain[chain.index(own) + 1 :] if own in chain else chain), None)
    tied = {"recipe", "run"}  # to the recipe's name, and to this machine
    base, chosen = {}, plan.changed(best["point"]).model_dump(exclude=tied)
    if extended:
        base, tree = recipe.experiment_of(extended).model_dump(exclude=tied), recipe.resolve(extended)
        repeats = {kind: base[kind].keys() - tree.get(kind, {}).keys() for kind in recipe.REPEATED}  # made by `seeds`
        if plan.sweep.method not in repeats["methods"]:
            base, chosen = _without(repeats, base), _without(repeats, chosen)
        if not any(repeats.values()) and any(base[kind].keys() - chosen[kind].keys() for kind in NAMED):
            extended, base = None, {}
    value = best["metrics"][plan.sweep.metric]
    lines = [f"# The best of the sweep {plan.name}: {plan.sweep.metric} {value:.4g} in its trial."]
    lines += [f"extends: {extended}"] if extended else []
    lines += [f"{key}: {plain(section)}" for key, section in difference(base, chosen).items()]
    return "\n".join(lines) + "\n"


def _without(names: dict[str, set[str]], tree: dict[str, Any]) -> dict[str, Any]:
    """The tree of an experiment without named entries of its sections."""
    return tree | {kind: {name: tree[kind][name] for name in tree[kind] if name not in names[kind]} for kind in names}


def difference(base: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What a recipe says to make `other` of `base`: changed keys alone; whole lists, and sections of another kind."""
    found: dict[str, Any] = {}
    for key, after in other.items():
        before = base.get(key)
        if isinstance(before, dict) and isinstance(after, dict) and all(before.get(t) == after.get(t) for t in TAGS):
            if inside := difference(before, after):
                found[key] = inside
        elif before != after or key not in base:
            found[key] = after
    return found
