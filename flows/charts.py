"""The pictures of a sweep: the metric against each setting, and all settings of each trial side by side."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from flows.space import Plan
from stages.figures import STYLE, plt, save


def settings(plan: Plan, rows: list[dict[str, Any]], path: Path) -> None:
    """One panel a setting: the metric of each trial against its value. The best trial, the first, is marked.

    Trials without a metric, which were stopped or failed, are crosses along the top.
    """
    keys, metric = _keys(rows), _metric(plan, rows)
    done = sum(value is not None for value in metric)
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(keys), figsize=(4.5 * len(keys), 4), squeeze=False, sharey=True)
        for axes, key in zip(panels[0], keys):
            places, labels = _places([row["point"].get(key) for row in rows])
            known = [(place, value) for place, value in zip(places, metric) if None not in (place, value)]
            axes.scatter([place for place, _ in known], [value for _, value in known], s=36)
            rest = [place for place, value in zip(places, metric) if value is None and place is not None]
            axes.plot(rest, [0.97] * len(rest), "x", color="0.5", transform=axes.get_xaxis_transform())
            if places[0] is not None:
                axes.scatter(places[:1], metric[:1], s=150, facecolors="none", edgecolors="C3", linewidths=2)
            if labels:
                axes.set_xticks(range(len(labels)), labels)
            elif _is_log(places):
                axes.set_xscale("log")
            else:
                whole = all(isinstance(place, int) for place in places if place is not None)
                axes.locator_params(axis="x", nbins=5, integer=whole)
            axes.set(xlabel=key, ymargin=0.12)
        crosses = f"; crosses: {len(rows) - done} stopped or failed" if done < len(rows) else ""
        panels[0][0].set(ylabel=plan.sweep.metric)
        panels[0][0].set_title(f"{plan.name}: {done} trials, the best marked{crosses}", loc="left")
        save(figure, path)


def parallel(plan: Plan, rows: list[dict[str, Any]], path: Path) -> None:
    """Parallel coordinates: a line a trial through its settings to its metric, coloured by the metric.

    A setting that a trial left alone stands at the experiment's own value. Trials without a metric, which were stopped
    or failed, are grey and end before it.
    """
    keys, metric = _keys(rows), _metric(plan, rows)
    trees = [plan.changed(row["point"]) for row in rows]
    columns = [_places([_value(tree, key) for tree in trees]) for key in keys] + [(metric, [])]
    low, high = _ends(metric)
    colours = plt.get_cmap("viridis_r" if plan.sweep.mode == "max" else "viridis")
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure, axes = plt.subplots(figsize=(2.6 * len(columns) + 1, 4.5))
        heights = []
        for place, (values, labels) in enumerate(columns):
            scale = math.log if not labels and _is_log(values) else float
            ends = _ends(values)
            bottom, top = map(scale, ends)
            span = (top - bottom) or 1.0
            heights.append([None if value is None else (scale(value) - bottom) / span for value in values])
            axes.axvline(place, color="0.6", linewidth=1)
            for index, label in enumerate(labels):
                axes.text(place + 0.02, (index - bottom) / span + 0.02, label, fontsize=9)
            if not labels:
                axes.text(place, -0.04, f"{ends[0]:.4g}", ha="center", va="top", fontsize=9)
                axes.text(place, 1.03, f"{ends[1]:.4g}", ha="center", va="bottom", fontsize=9)
        for index in reversed(range(len(rows))):  # the best on top
            line = [(place, column[index]) for place, column in enumerate(heights) if column[index] is not None]
            value = metric[index]
            colour = "0.85" if value is None else colours((value - low) / ((high - low) or 1.0))
            axes.plot(*zip(*line), "o-", color=colour, linewidth=3 if index == 0 else 1.3, markersize=4)
        axes.set_xticks(range(len(columns)), [*keys, plan.sweep.metric], rotation=12, ha="right", fontsize=9)
        axes.tick_params(axis="x", pad=18)
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.set_ylim(-0.02, 1.02)
        grey = ", the grey ones were stopped or failed" if None in metric else ""
        axes.set_title(f"{plan.name}: the thick line is the best{grey}", pad=24)
        save(figure, path)


def _keys(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row["point"]))


def _value(tree: Any, key: str) -> Any:
    for step in key.split("."):
        tree = tree[int(step) if isinstance(tree, list) else step]
    return tree


def _metric(plan: Plan, rows: list[dict[str, Any]]) -> list[float | None]:
    return [row["metrics"][plan.sweep.metric] if row["state"] == "done" else None for row in rows]


def _ends(values: list) -> tuple[float, float]:
    """The least and the greatest of what is there."""
    known = [value for value in values if value is not None]
    return min(known), max(known)


def _places(values: list) -> tuple[list, list[str]]:
    """Where values stand on an axis; text and lists stand in a row, and have labels."""
    if all(value is None or isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return values, []
    labels = list(dict.fromkeys(str(value) for value in values if value is not None))
    return [None if value is None else labels.index(str(value)) for value in values], labels


def _is_log(values: list) -> bool:
    """Whether values span more than a factor of twenty, and can be shown so."""
    low, high = _ends(values)
    return low > 0 and high / low > 20
