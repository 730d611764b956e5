"""The report's plots, as PNG."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import polars as pl

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402

from multiscale.core.storage import atomic_file  # noqa: E402

STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "font.size": 11,
    "figure.dpi": 110,
}


def save(figure, path: Path) -> None:
    """Writes a figure as PNG, the same bytes for the same figure."""
    figure.tight_layout()
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
    plt.close(figure)


def training(curves: pl.DataFrame, path: Path) -> None:
    """Loss against training images, one line a part."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8, 4))
        for (name,), frame in curves.group_by("part", maintain_order=True):
            axes.plot(frame["images"], frame["loss"], label=name, linewidth=1.8)
        axes.set(xlabel="training images", ylabel="loss", title="Training", yscale="log")
        axes.legend(frameon=False, bbox_to_anchor=(1.01, 1), loc="upper left")  # beside the curves, however many
        save(figure, path)


def quality_time(groups: list[list[dict]], path: Path) -> None:
    """KID with its interval against seconds per image, one panel a protocol: down and to the left is better."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(groups), figsize=(7 * len(groups), 4), squeeze=False)
        for axes, rows in zip(panels[0], groups):
            for row in rows:
                place = (row["seconds_per_image"], row["kid"])
                axes.errorbar(*place, row["kid_std"], fmt="o", capsize=4, markersize=8)
                axes.annotate(row["method"], place, xytext=(8, 8), textcoords="offset points")
            title = "Quality against time" + (f", N = {rows[0]['n']}" if len(groups) > 1 else "")
            axes.set(xlabel="seconds per image", ylabel=f"KID-{rows[0]['metric']}", title=title)
            axes.set_xlim(0, 1.25 * max(row["seconds_per_image"] for row in rows))
            axes.set_ylim(bottom=min(0, *(row["kid"] - row["kid_std"] for row in rows)))
        save(figure, path)
