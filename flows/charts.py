"""The pictures of a sweep: the metric against each setting, and all settings of each trial side by side."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from flows.space import Plan
from stages.figures import STYLE, plt, save


def settings(plan: Plan, rows: list[dict[str, Any]], path: Path) -> None:
    """One panel a setting: the metric of each trial against its value. The best trial is marked."""
    keys = _keys(rows)
    metric = [row["metrics"][plan.sweep.metric] for row in rows]
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(keys), figsize=(4.5 * len(keys), 4), squeeze=False, sharey=True)
        for axes, key in zip(panels[0], keys):
            given = [(row["point"][key], value) for row, value in zip(rows, metric) if key in row["point"]]
            values, labels = _places([value for value, _ in given])
            axes.scatter(values, [value for _, value in given], s=36)
            if key in rows[0]["point"]:
                axes.scatter(values[:1], metric[:1], s=150, facecolors="none", edgecolors="C3", linewidths=2)
            if labels:
                axes.set_xticks(range(len(labels)), labels)
            elif _is_log(values):
                axes.set_xscale("log")
            axes.set(xlabel=key)
        panels[0][0].set(ylabel=plan.sweep.metric, title=f"{plan.name}: {len(rows)} trials, the best marked")
        save(figure, path)


def parallel(plan: Plan, rows: list[dict[str, Any]], path: Path) -> None:
    """Parallel coordinates: a line a trial through its settings to its metric, coloured by the metric."""
    keys = _keys(rows)
    metric = [row["metrics"][plan.sweep.metric] for row in rows]
    columns = [_places([row["point"].get(key) for row in rows]) for key in keys] + [(metric, [])]
    low, high = min(metric), max(metric)
    colours = plt.get_cmap("viridis" if plan.sweep.mode == "max" else "viridis_r")
    with plt.rc_context({**STYLE, "axes.grid": False}):
        figure, axes = plt.subplots(figsize=(2.6 * len(columns) + 1, 4.5))
        heights = []
        for place, (values, labels) in enumerate(columns):
            scale = math.log if not labels and _is_log(values) else float
            known = [scale(value) for value in values if value is not None]
            bottom, top = min(known), max(known)
            span = (top - bottom) or 1.0
            heights.append([None if value is None else (scale(value) - bottom) / span for value in values])
            axes.axvline(place, color="0.6", linewidth=1)
            ends = (labels[0], labels[-1]) if labels else (f"{min(v for v in values if v is not None):.3g}", None)
            ends = ends if labels else (ends[0], f"{max(v for v in values if v is not None):.3g}")
            axes.text(place, -0.04, ends[0], ha="center", va="top", fontsize=9)
            axes.text(place, 1.03, ends[1], ha="center", va="bottom", fontsize=9)
        for index in reversed(range(len(rows))):  # the best on top
            line = [(place, column[index]) for place, column in enumerate(heights) if column[index] is not None]
            shade = (metric[index] - low) / ((high - low) or 1.0)
            axes.plot(*zip(*line), color=colours(shade), linewidth=3 if index == 0 else 1.3, marker="o", markersize=4)
        axes.set_xticks(range(len(columns)), [*keys, plan.sweep.metric], rotation=12, ha="right", fontsize=9)
        axes.tick_params(axis="x", pad=18)
        axes.set_yticks([])
        axes.spines[:].set_visible(False)
        axes.set_ylim(-0.02, 1.02)
        axes.set_title(f"{plan.name}: the thick line is the best", pad=24)
        save(figure, path)


def _keys(rows: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row["point"]))


def _places(values: list) -> tuple[list, list[str]]:
    """Where values stand on an axis; text and lists stand in a row, and have labels."""
    if all(value is None or isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return values, []
    labels = list(dict.fromkeys(str(value) for value in values if value is not None))
    return [None if value is None else labels.index(str(value)) for value in values], labels


def _is_log(values: list) -> bool:
    """Whether values span more than a factor of twenty, and can be shown so."""
    known = [value for value in values if value is not None]
    return min(known) > 0 and max(known) / min(known) > 20
