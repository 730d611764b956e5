"""Writes what `report` made into a folder that git can keep, with a page, results.md.

python -m stages.publish docs/results/fashion32                     # tables, claims, pictures, the experiment
python -m stages.publish docs/results/fashion32 --page              # and reports/report.html, some megabytes
python -m stages.publish docs/results/fashion32 --into README.md    # and its table and plot into another page

In another page the plot and the table go between the lines `<!-- results -->` and `<!-- end of results -->`.

results.md has the leaderboard with the seconds of this machine, quality against time, methods at equal budgets, the
claims, a grid of samples of each method, the training curves, versions, hardware and commands. Commit the experiment
first: the page names the commit. The results and the report of `dvc repro` must exist.
"""

from __future__ import annotations

import argparse

from stages.common.harness import launch

if __name__ == "__main__":  # first: the imports below take seconds
    parser = argparse.ArgumentParser(
        prog="python -m stages.publish", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="where to write; files of the same names are replaced")
    parser.add_argument("--page", action="store_true", help="also copy reports/report.html")
    parser.add_argument("--into", metavar="FILE", help="a Markdown page to insert the plot and the table into")
    launch("stages.publish", "reading the leaderboard", **vars(parser.parse_args()))

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from multiscale.core import intact
from multiscale.core.storage import atomic_file, read_json, read_sealed_json, write_json, write_text
from stages import report
from stages.common import settings
from stages.common.errors import BadInput
from stages.common.paths import EXPERIMENT, MEASUREMENTS, PAIRED, REPORTS, SAMPLES
from stages.reporting import claims, fair, leaderboard, measured, pairs, provenance, views
from stages.reporting.pairs import Difference
from stages.reporting.rows import Group, Row, grouped, rows_of
from stages.reporting.tables import markdown
from stages.schema import Experiment

COLUMNS = {
    "method": "method",
    "works_on": "works on",
    "kid": "KID-{metric}",
    "trainings": "trainings",
    "label_accuracy": "label accuracy",
    "recall": "recall",
    "seconds_per_image": "s/image",
    "network_calls": "calls",
    "flops_per_image": "GFLOP/image",
    "parameters": "parameters",
    "train_images": "training images",
    "train_seconds": "training s",
}
PAGE, MARKS = "results.md", ("<!-- results -->", "<!-- end of results -->")
COPIED = (report.TABLE, report.VALIDATED, report.PAIRS, report.TRAINING, report.QUALITY_TIME, EXPERIMENT)
FILES = {
    "leaderboard.csv, leaderboard.parquet": "every column of each row, with its protocol",
    "measurements.json": "what was measured of each training and floor",
    "claims.json": "the findings about the claims",
    "pairs.csv": "each pair of methods, image by image",
    "training.csv, validation.csv": "the histories of all trainings",
    "sampling.json": "the seconds of sampling, and where they were measured",
    "params.yaml": "the experiment",
}


def run(folder: str, page: bool = False, into: str | None = None) -> None:
    """Writes the folder. Raises BadInput where the report is not that of the results in place."""
    to, params = Path(folder), settings.load()
    if into:
        _parts(Path(into))  # refused before anything is written
    rows = rows_of(params)
    board = REPORTS / "leaderboard.json"
    try:
        found = read_json(board)
    except ValueError:
        found = {}
    if found != {row["method"]: row for row in rows}:
        raise BadInput(f"{board}: not of the results in place; allowed: those of `dvc repro report`")
    sampling, judged = measured.of_sampling(), read_sealed_json(claims.SECONDS)
    if not sampling:
        raise BadInput(f"{report.QUALITY_TIME}: seconds were not measured here; run `{measured.COMMAND}`")
    intact.check(*(PAIRED / f"{name}.parquet" for name in params.methods))
    groups = measured.with_seconds(grouped(rows), sampling, params)
    equal = fair_views(groups, pairs.compare(groups, params))
    ordered = [row for group in groups for row in group.methods] + [row for row in rows if row["kind"] == "floor"]
    for path in (*COPIED, *([report.PAGE] if page else [])):
        with atomic_file(to / path.name) as temporary:
            shutil.copyfile(path, temporary)
    for path in to.glob("grid-*.png"):
        path.unlink()
    for row in ordered:
        write_grid(SAMPLES / row["method"] / "grid.png", to / f"grid-{row['method']}.png", params.data.channels)
    table = views.flat(ordered)
    write_text(to / "leaderboard.csv", table.write_csv())
    with atomic_file(to / "leaderboard.parquet") as temporary:
        table.write_parquet(temporary)
    names = [*params.methods, *params.evaluate.floors]
    write_json(to / "measurements.json", {name: read_sealed_json(MEASUREMENTS / f"{name}.json") for name in names})
    write_json(to / "claims.json", judged)
    write_json(to / "sampling.json", sampling)
    write_text(to / PAGE, text(params, groups, ordered, equal, judged, sampling, folder))
    if into:
        before, after = _parts(Path(into))
        plot = os.path.relpath(to / report.QUALITY_TIME.name, Path(into).parent)
        shown = f"![KID against seconds per image]({plot})\n\n{table_of(groups)}"
        write_text(Path(into), f"{before}{MARKS[0]}\n\n{shown}\n{MARKS[1]}{after}")
    size = sum(path.stat().st_size for path in to.iterdir() if path.is_file())
    print(f"{to / PAGE}: {len(ordered)} rows; the folder has {size / 2**20:.1f} MiB")


def write_grid(path: Path, to: Path, channels: int) -> None:
    """A grid of samples as a small PNG: of grey images a grey one."""
    with Image.open(path) as image, atomic_file(to) as temporary:
        image.convert("L" if channels == 1 else "RGB").save(temporary, "PNG", optimize=True)


def text(
    params: Experiment,
    groups: Sequence[Group],
    rows: Sequence[Row],
    equal: Sequence[str],
    judged: Mapping[str, claims.Finding],
    sampling: Mapping[str, Any],
    folder: str,
) -> str:
    """The page, as Markdown; equal: its section of methods at equal budgets."""
    data, versions = params.data, provenance.versions()
    about = [*provenance.hardware(sampling).items(), *versions.items()]
    parts = [
        f"# {data.name} at {data.resolution} px: the recipe {params.recipe}",
        f"    python -m stages.recipe {params.recipe}\n    make repro\n    python -m stages.publish {folder}",
        leaderboard.markdown(list(groups), None, COLUMNS, measured.remarks(dict(sampling))),
        "## Quality against time",
        f"![KID against seconds per image]({report.QUALITY_TIME.name})",
        "A point is a method, a small one on its line the method with fewer steps; bars are one standard error, "
        "over the trainings of a method that has several, else over the images. The grey line is the Pareto front of "
        "all points.",
        *equal,
        claims.markdown(judged),
        f"{claims.counted(judged).capitalize()}.",
        "## Training",
        f"![Loss against training images]({report.TRAINING.name})",
        "## Samples",
        *(f"### {row['method']}\n\n![Samples of {row['method']}](grid-{row['method']}.png)" for row in rows),
        "## Where it ran",
        markdown(["", ""], about),
        "## What makes each row again",
        markdown(["method", "command", "images", "SHA-256 of the images"], provenance.commands(rows, params)),
        "## Files",
        markdown(["file", "holds"], FILES.items()),
    ]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def fair_views(groups: Sequence[Group], differences: Sequence[Difference]) -> list[str]:
    """The parts of the page about methods at equal budgets; none where no two have such budgets."""
    shown = [table for table in fair.tables(groups, differences) if table.rows]
    found = [f"### {table.title}\n\n{markdown(table.headings, table.rows)}" for table in shown]
    return ["## Fair views", fair.NOTE, *found] if found else []


def table_of(groups: Sequence[Group]) -> str:
    """The tables of the leaderboard alone, without notes."""
    lines = leaderboard.markdown(list(groups), None, COLUMNS).splitlines()
    return "\n".join(line for line in lines if line.startswith("|")) + "\n"


def _parts(page: Path) -> tuple[str, str]:
    """What stands before and after the results on a page. Raises BadInput unless it has both marks, in their order."""
    before, first, rest = page.read_text().partition(MARKS[0])
    _, last, after = rest.partition(MARKS[1])
    if not (first and last):
        raise BadInput(f"{page}: has no place for results; allowed: a page with the lines {MARKS[0]} and {MARKS[1]}")
    return before, after
