"""The pictures of a sweep: the metric against each setting, and all settings of each trial side by side."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from flows.sweeps.space import Plan, at
from stages.reporting.figures import drawing, plt
from stages.schema import Experiment


class Scale:
    """The values of one setting or metric, as places on an axis; text and lists stand in a row, and have labels."""

    def __init__(self, values: list[Any]):
        self.labels: list[str] = []
        if not all(value is None or isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            self.labels = list(dict.fromkeys(str(value) for value in values if value is not None))
            values = [None if value is None else self.labels.index(str(value)) for value in values]
        known = [value for value in values if value is not None]
        self.places, self.low, self.high = values, min(known, default=0), max(known, default=0)
        self.log = not self.labels and self.low > 0 and self.high / self.low > 20

    def height(self, place: float | None) -> float | None:
        """A place as a share of the way from the lowest to the highest."""
        scale = math.log if self.log else float
        span = scale(self.high) - scale(self.low)
        return None if place is None else (scale(place) - scale(self.low)) / (span or 1.0)


def settings(plan: Plan, keys: list[str], rows: list[dict[str, Any]], path: Path) -> None:
    """One panel a setting: the metric of each trial against its value. The best trial, the first, is marked.

    Trials without a metric, which were stopped or failed, are crosses along the top.
    """
    metric = _metric(plan, rows)
    done = sum(value is not None for value in metric)
    with drawing(path, len(keys), figsize=(4.5 * len(keys), 4), sharey=True) as panels:
        for axes, key in zip(panels, keys):
            scale = Scale([row["point"].get(key) for row in rows])
            shown = [(place, value) for place, value in zip(scale.places, metric) if place is not None]
            known = [pair for pair in shown if pair[1] is not None]
            axes.scatter([place for place, _ in known], [value for _, value in known], s=36)
            rest = [place for place, value in shown if value is None]
            axes.plot(rest, [0.97] * len(rest), "x", color="0.5", transform=axes.get_xaxis_transform())
            if scale.places[0] is not None:
                axes.scatter(scale.places[0], metric[0], s=150, facecolors="none", edgecolors="C3", linewidths=2)
            if scale.labels:
                axes.set_xticks(range(len(scale.labels)), scale.labels)
            elif scale.log:
                axes.set_xscale("log")
            else:
                axes.locator_params(axis="x", nbins=5, integer=all(isinstance(place, int) for place, _ in shown))
            axes.set(xlabel=key, ymargin=0.12)
        crosses = f"; crosses: {len(rows) - done} stopped or failed" if done < len(rows) else ""
        panels[0].set(ylabel=plan.sweep.metric)
        panels[0].set_title(f"{plan.name}: {done} trials, the best marked{crosses}", loc="left")


def parallel(plan: Plan, keys: list[str], rows: list[dict[str, Any]], path: Path) -> None:
    """Parallel coordinates: a line a trial through its settings to its metric, coloured by the metric.

    A setting that a trial left alone stands at the experiment's own value, one that it does not have nowhere. Trials
    without a metric, which were stopped or failed, are grey and end before it.
    """
    trials = [plan.changed(row["point"]) for row in rows]
    scales = [*(Scale([_value(trial, key) for trial in trials]) for key in keys), Scale(_metric(plan, rows))]
    colours = plt.get_cmap("viridis_r" if plan.sweep.mode == "max" else "viridis")
    with drawing(path, figsize=(2.6 * len(scales) + 1, 4.5)) as (panel,):
        panel.grid(False)
        for x, scale in enumerate(scales):
            panel.axvline(x, color="0.6", linewidth=1)
            for index, label in enumerate(scale.labels):
                panel.text(x + 0.02, scale.height(index) + 0.02, label, fontsize=9)
            if not scale.labels:
                panel.text(x, -0.04, f"{scale.low:.4g}", ha="center", va="top", fontsize=9)
                panel.text(x, 1.03, f"{scale.high:.4g}", ha="center", va="bottom", fontsize=9)
        for index in reversed(range(len(rows))):  # the best on top
            heights = [scale.height(scale.places[index]) for scale in scales]
            line = [(x, height) for x, height in enumerate(heights) if height is not None]
            colour = "0.85" if heights[-1] is None else colours(heights[-1])
            panel.plot(*zip(*line), "o-", color=colour, linewidth=3 if index == 0 else 1.3, markersize=4)
        panel.set_xticks(range(len(scales)), [*keys, plan.sweep.metric], rotation=12, ha="right", fontsize=9)
        panel.tick_params(axis="x", pad=18)
        panel.set_yticks([])
        panel.spines[:].set_visible(False)
        panel.set_ylim(-0.02, 1.02)
        grey = ", the grey ones were stopped or failed" if scales[-1].places[-1] is None else ""
        panel.set_title(f"{plan.name}: the thick line is the best{grey}", pad=24)


def _metric(plan: Plan, rows: list[dict[str, Any]]) -> list[float | None]:
    return [row["metrics"][plan.sweep.metric] if row["state"] == "done" else None for row in rows]


def _value(trial: Experiment, key: str) -> Any:
    """The value of a setting in a trial; None where a section that holds it is left out or of another kind there."""
    try:
        return at(trial, key)
    except (LookupError, AttributeError):
        return None
