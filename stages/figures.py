"""The report's plots, as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib
import polars as pl

if TYPE_CHECKING:
    from stages.leaderboard import Group

matplotlib.use("Agg")
from cycler import cycler  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402

from multiscale.core.storage import atomic_file  # noqa: E402

STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    # Ten colours, then the same dashed: a recipe may have more parts than there are colours.
    "axes.prop_cycle": cycler(linestyle=["-", "--", ":"]) * cycler(color=list(matplotlib.colormaps["tab10"].colors)),
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


def quality_time(groups: list[Group], path: Path) -> None:
    """KID with its interval against seconds per image, one panel a protocol: down and to the left is better.

    Floors, which cost nothing, are lines.
    """
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(groups), figsize=(7 * len(groups), 4), squeeze=False)
        for axes, group in zip(panels[0], groups):
            rows = group.methods
            for row in rows:
                place = (row["seconds_per_image"], row["kid"])
                axes.errorbar(*place, row["kid_se"], fmt="o", capsize=4, markersize=8)
                height = -16 if _is_covered(row, rows) else 8
                axes.annotate(row["method"], place, xytext=(8, height), textcoords="offset points")
            for row in group.floors:
                axes.axhline(row["kid"], color="0.45", linestyle="--", linewidth=1.2)
                beside = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
                axes.annotate(row["method"], (1, row["kid"]), xytext=(5, 0), color="0.45", **beside)
            title = "Quality against time" + (f", N = {group.protocol['n']}" if len(groups) > 1 else "")
            axes.set(xlabel="seconds per image", ylabel=f"KID-{group.protocol['metric']}", title=title)
            axes.set_xlim(0, 1.25 * max(row["seconds_per_image"] for row in rows))
            least = min(0, *(row["kid"] - row["kid_se"] for row in [*rows, *group.floors]))
            axes.set_ylim(bottom=least - 0.03 * axes.get_ylim()[1])  # a floor is near zero, and no axis
        save(figure, path)


def _is_covered(row: dict, rows: list[dict]) -> bool:
    """Whether another point stands where a label above and to the right of this one would."""
    width, height = (max(each[key] for each in rows) for key in ("seconds_per_image", "kid"))
    apart = [(other["seconds_per_image"] - row["seconds_per_image"], other["kid"] - row["kid"]) for other in rows]
    return any(0 < right < 0.15 * width and -0.02 * height < up < 0.1 * height for right, up in apart)


def spectrum(
    frequencies: list[float], power: list[float], levels: dict[float, tuple[float, int]], title: str, path: Path
) -> None:
    """The data's power against the noise's at each level, and the frequency from which on the noise hides the data.

    levels: noise sigma -> that frequency, and the smallest safe side in pixels. Both powers are divided by
    (1 - sigma)^2, so the data are one curve and each level a horizontal line.
    """
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(8, 4))
        axes.plot(frequencies, power, "k", linewidth=1.8, marker="o", markersize=3, label="data")
        shown = sorted((level for level in levels.items() if level[0] < 1), reverse=True)  # pure noise hides everything
        for index, (sigma, (cut, side)) in enumerate(shown):
            height, label = (sigma / (1 - sigma)) ** 2, f"noise {sigma:.2f}: masked from {cut:.2f}, {side} px is safe"
            axes.axhline(height, color=f"C{index}", linewidth=1.2, label=label)
            axes.plot([cut] * 2, [min(power), height], color=f"C{index}", linestyle=":")
        axes.set(xlabel="cycles a pixel of the grid", ylabel="power", title=title, yscale="log")
        axes.legend(frameon=False, bbox_to_anchor=(1.01, 1), loc="upper left")
        save(figure, path)


def conditioning(fields: list[dict], images: list[dict], path: Path) -> None:
    """Condition numbers against the side: lines for 1/f^2 fields, points for the recipe's own images."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(7, 4))
        sides = [row["side"] for row in fields]
        for key, label in (("pixels", "pixels"), ("low", "coarsest band"), ("details", "details, the worst level")):
            axes.plot(sides, [row[key] for row in fields], label=f"{label}, 1/f² field", linewidth=1.8)
        for row in images:
            place = (row["side"], row["condition_spectral"])
            axes.plot(*place, "o", color="0.25", markersize=7)
            axes.annotate(row["band"], place, xytext=(8, -4), textcoords="offset points", fontsize=9)
        axes.set(title="Conditioning", xlabel="side", ylabel="condition number", yscale="log")
        doublings(axes, sorted({*sides, *(row["side"] for row in images)}))
        axes.legend(frameon=False, bbox_to_anchor=(1.01, 1), loc="upper left", title="points: the recipe's images")
        save(figure, path)


def euler_steps(tables: dict[str, list[dict]], errors: dict[str, float], path: Path) -> None:
    """Euler steps to a given error against the side, pixels and whitened wavelets, one panel a measure of error."""
    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, len(tables), figsize=(4 * len(tables), 4), sharey=True)
        for axes, (kind, rows) in zip(panels, tables.items()):
            sides = [row["side"] for row in rows]
            for key in ("pixels", "wavelets"):
                axes.plot(sides, [row[key] for row in rows], "o-", label=key, linewidth=1.8)
            axes.set(
                title=f"{kind} error {errors[kind]:g}", xlabel="side of a 1/f² field", yscale="log", ylim=(10, 1000)
            )
            doublings(axes, sides)
        panels[0].set_ylabel("Euler steps")
        panels[0].legend(frameon=False)
        save(figure, path)


def doublings(axes, values: list[int]) -> None:
    """Sides or steps along a logarithmic axis, each with its number."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [str(value) for value in values])
    axes.minorticks_off()
