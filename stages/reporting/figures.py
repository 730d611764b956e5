"""The report's plots, as PNG."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import polars as pl

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from stages.reporting.rows import Group, Row

matplotlib.use("Agg")
from cycler import cycler  # noqa: E402
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib import ticker  # noqa: E402

from multiscale.core.storage import atomic_file  # noqa: E402
from stages.reporting.trainings import standard_error  # noqa: E402

COLOURS = (*(f"C{index}" for index in range(10)), "black", "blue")  # of methods: of more, some share one
STYLE = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    # Ten colours, then the same dashed and dotted, for recipes with many parts.
    "axes.prop_cycle": cycler(linestyle=["-", "--", ":"])
    * cycler(color=list(matplotlib.colormaps["tab10"](range(10)))),
    "grid.alpha": 0.25,
    "font.size": 11,
    "figure.dpi": 110,
}
BESIDE: dict[str, Any] = {"frameon": False, "bbox_to_anchor": (1.01, 1), "loc": "upper left"}  # of a legend
ABOVE: dict[str, Any] = {  # of the name of a line
    "xycoords": ("axes fraction", "data"),
    "textcoords": "offset points",
    "ha": "right",
    "color": "0.45",
}
MARKERS = {"pixels": "o", "latents": "s"}


@contextmanager
def drawing(path: Path, count: int = 1, **options: Any) -> Iterator[list[Any]]:
    """Yields the axes of a figure's panels, and writes the figure as a reproducible PNG."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(1, count, squeeze=False, **options)
        yield list(axes[0])
        figure.tight_layout()
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="png", metadata={"Software": None})
        plt.close(figure)


def training(curves: pl.DataFrame, path: Path) -> None:
    """Loss against training images, a line for each part, and points where its validation loss was measured."""
    with drawing(path, figsize=(8, 4)) as (axes,):
        for (name,), frame in curves.group_by("part", maintain_order=True):
            logged, held_out = (frame.drop_nulls(key) for key in ("loss", "validation_loss"))
            (line,) = axes.plot(logged["images"], logged["loss"], label=name, linewidth=1.8)
            axes.plot(held_out["images"], held_out["validation_loss"], "o", markersize=3, color=line.get_color())
        points = "; points: held-out images" if curves["validation_loss"].count() else ""
        axes.set(xlabel="training images", ylabel="loss", title=f"Training{points}", yscale="log")
        axes.legend(**BESIDE)


def quality_time(groups: list[Group], path: Path) -> None:
    """KID with its standard error against seconds per image, a panel for each protocol; floors are horizontal lines.

    The error is that over trainings where a row has several, else, and of further numbers of steps, over images. These
    are small points on a line; the grey steps are the Pareto front of all points.
    """
    with drawing(path, len(groups), figsize=(9.5 * len(groups), 4.8)) as panels:
        for axes, group in zip(panels, groups):
            known: list[tuple[float, float]] = []
            for index, row in enumerate(group.methods):
                timed = row.get("seconds_per_image_of_steps", {})
                steps = [each for each in row.get("steps") or [] if str(each["steps"]) in timed]
                more = [(timed[str(each["steps"])], each["kid"], each["kid_se"]) for each in steps]
                own = (row["seconds_per_image"], row["kid"], standard_error("kid", row))
                places = sorted([own, *more])
                style = {"color": COLOURS[index % len(COLOURS)], "marker": MARKERS[row["works_on"]]}
                axes.errorbar(*zip(*places), linestyle="-", linewidth=1, capsize=3, markersize=4, **style)
                axes.plot(*own[:2], linestyle="none", markersize=9, label=row["method"], **style)
                known += [place[:2] for place in places]
            for row in group.floors:
                axes.axhline(row["kid"], color="0.45", linestyle="--", linewidth=1.2)
                axes.annotate(row["method"], (0.995, row["kid"]), xytext=(0, 3), **ABOVE)
            axes.step(*zip(*front(known)), where="post", color="0.6", linewidth=1, linestyle="-", zorder=0)
            title = "Quality against time" + (f", N = {group.protocol['n']}" if len(groups) > 1 else "")
            axes.set(xlabel="seconds per image", ylabel=f"KID-{group.protocol['metric']}", title=title, xscale="log")
            axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:g}"))
            axes.minorticks_off()
            least = min(0, *(row["kid"] - standard_error("kid", row) for row in [*group.methods, *group.floors]))
            axes.set_ylim(bottom=least - 0.03 * axes.get_ylim()[1])  # keeps floors near zero off the axis
            axes.legend(**BESIDE, title="round: on pixels\nsquare: on latents")


def front(places: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (seconds, KID) that no other one beats in both, from the fastest to the best."""
    found: list[tuple[float, float]] = []
    for seconds, kid in sorted(places):
        if not found or kid < found[-1][1]:
            found.append((seconds, kid))
    return found


def spectrum(
    frequencies: list[float], power: list[float], levels: dict[float, tuple[float, int]], title: str, path: Path
) -> None:
    """The power of the data and of the noise at each level, and the frequency above which the noise masks the data.

    levels: noise sigma -> that frequency, and the smallest safe resolution in pixels. Both powers are divided by
    (1 - sigma)^2, so the data are one curve and each level is a horizontal line.
    """
    with drawing(path, figsize=(8, 4)) as (axes,):
        axes.plot(frequencies, power, "k", linewidth=1.8, marker="o", markersize=3, label="data")
        shown = sorted((level for level in levels.items() if level[0] < 1), reverse=True)  # pure noise masks everything
        for index, (sigma, (cut, resolution)) in enumerate(shown):
            height = (sigma / (1 - sigma)) ** 2
            label = f"noise {sigma:.2f}: masked from {cut:.2f}, {resolution} px is safe"
            axes.axhline(height, color=f"C{index}", linewidth=1.2, label=label)
            axes.plot([cut] * 2, [min(power), height], color=f"C{index}", linestyle=":")
        axes.set(xlabel="cycles a pixel of the grid", ylabel="power", title=title, yscale="log")
        axes.legend(**BESIDE)


def conditioning(fields: list[Row], images: list[Row], path: Path) -> None:
    """Condition numbers against the resolution: lines for 1/f^2 fields, points for the recipe's images."""
    with drawing(path, figsize=(7, 4)) as (axes,):
        resolutions = [row["resolution"] for row in fields]
        for key, label in (("pixels", "pixels"), ("low", "coarsest band"), ("details", "details, the worst level")):
            axes.plot(resolutions, [row[key] for row in fields], label=f"{label}, 1/f² field", linewidth=1.8)
        for row in images:
            place = (row["resolution"], row["condition_spectral"])
            axes.plot(*place, "o", color="0.25", markersize=7)
            axes.annotate(row["band"], place, xytext=(8, -4), textcoords="offset points", fontsize=9)
        axes.set(title="Conditioning", xlabel="resolution", ylabel="condition number", yscale="log")
        doublings(axes, sorted({*resolutions, *(row["resolution"] for row in images)}))
        axes.legend(**BESIDE, title="points: the recipe's images")


def euler_steps(tables: dict[str, list[Row]], errors: dict[str, float], path: Path) -> None:
    """Euler steps to reach an error against the resolution, for pixels and whitened wavelets, a panel an error."""
    with drawing(path, len(tables), figsize=(4 * len(tables), 4), sharey=True) as panels:
        for axes, (kind, rows) in zip(panels, tables.items()):
            resolutions = [row["resolution"] for row in rows]
            for key in ("pixels", "wavelets"):
                axes.plot(resolutions, [row[key] for row in rows], "o-", label=key, linewidth=1.8)
            axes.set(title=f"{kind} error {errors[kind]:g}", xlabel="resolution of a 1/f² field")
            axes.set(yscale="log", ylim=(10, 1000))
            doublings(axes, resolutions)
        panels[0].set_ylabel("Euler steps")
        panels[0].legend(frameon=False)


def doublings(axes: Axes, values: list[int]) -> None:
    """Labels values on a logarithmic x-axis."""
    axes.set_xscale("log", base=2)
    axes.set_xticks(values, [str(value) for value in values])
    axes.minorticks_off()
