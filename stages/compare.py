"""Prints the KID of every method at several revisions side by side, each with its difference from the first.

python -m stages.compare                    # HEAD, its DVC experiments, and the workspace if it differs from all
python -m stages.compare main bored-toad    # branches, commits, DVC experiments; the first is the baseline

It also writes reports/compare.html, a self-contained page: the leaderboards of all revisions in one, and the
quality of their rows against cost, with intervals. Rows of different protocols are kept apart. To compare a recipe,
commit its run, or save it with `dvc exp run`.

A difference is given in standard errors of the difference (se), which cover other sampling seeds, not other training
runs.
"""

from __future__ import annotations

import argparse

from stages.common.harness import launch

if __name__ == "__main__":  # first: the imports below take seconds
    parser = argparse.ArgumentParser(
        prog="python -m stages.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("revisions", nargs="*", metavar="REVISION", help="a git revision or a DVC experiment")
    launch("stages.compare", "reading the metrics of the revisions", **vars(parser.parse_args()))

import json
from collections.abc import Sequence
from math import hypot
from pathlib import Path
from typing import Any

from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from dvc.repo import Repo

from multiscale.core.intact import Damaged
from multiscale.core.storage import parse_sealed_json, write_text
from stages.common.errors import BadInput
from stages.common.paths import MEASUREMENTS, REPORTS
from stages.reporting import page, views
from stages.reporting.leaderboard import COLUMNS
from stages.reporting.rows import Row, grouped
from stages.reporting.tables import columns

WORKSPACE = "workspace"
PAGE, BOARD = REPORTS / "compare.html", REPORTS / "leaderboard.json"
HEADINGS = {"method": COLUMNS["method"], "revision": "revision", "recipe": "recipe"} | COLUMNS
SHOWN = ("method", "revision", "recipe", "kid", "label_accuracy", "recall", "flops_per_image", "train_images")
Measurements = dict[str, dict[str, Any]]  # of each method and floor, as the stage `evaluate` writes them


def measurements(revision: str) -> Measurements:
    """What was measured at a revision. Raises BadInput if it does not exist or nothing was measured there."""
    try:
        files = DVCFileSystem(rev=None if revision == WORKSPACE else revision)
        folder = MEASUREMENTS.as_posix()
        names = sorted(files.ls(folder, detail=False)) if files.isdir(folder) else []
        paths = [Path(folder, name.rpartition("/")[2]) for name in names]
        found = {path.stem: parse_sealed_json(files.read_bytes(name), path) for name, path in zip(names, paths)}
    except Damaged as error:
        raise BadInput(f"{revision}: {error}; allowed: the file as it was measured (see dvc pull)") from None
    except DvcException as error:
        raise BadInput(f"{revision}: {error}; allowed: a revision or experiment (git log, dvc exp list)") from None
    if not found:
        raise BadInput(f"{revision}: nothing was measured there; run `dvc repro`, and commit dvc.lock")
    return found


def board(revision: str) -> list[Row]:
    """The rows of the leaderboard at a revision; none where the stage `report` did not run."""
    files = DVCFileSystem(rev=None if revision == WORKSPACE else revision)
    if not files.isfile(BOARD.as_posix()):
        return []
    return list(json.loads(files.read_text(BOARD.as_posix())).values())


def together(boards: dict[str, list[Row]]) -> list[Row]:
    """The rows of all revisions, methods named by theirs; one that is the same in several is that of the first."""
    seen: list[Row] = []
    rows = []
    for revision, each in boards.items():
        for row in each:
            if row not in seen:
                seen.append(row)
                name = row["method"] if row["kind"] == "floor" else f"{row['method']} ({revision})"
                rows.append(row | {"revision": revision, "method": name})
    return rows


def write_page(boards: dict[str, list[Row]]) -> None:
    """Writes the page of the revisions."""
    groups = grouped(together(boards))
    tables = [
        views.board(group, None, [], index, HEADINGS, SHOWN, ("revision", "recipe"))
        for index, group in enumerate(groups)
    ]
    charts = {"boards": views.pareto(groups), "curves": [], "spectra": []}
    made = page.Comparison(list(boards), views.warnings(groups), tables, charts)
    write_text(PAGE, page.render(made))


def cell(here: dict[str, Any] | None, first: dict[str, Any] | None, metric: str) -> str:
    """KID with its standard error and, of the same protocol, its difference from the baseline.

    metric: that of the table, whose name a KID of another one bears.
    """
    if here is None:
        return "-"
    shown = f"{here['kid']:.4f} +- {here['kid_se']:.4f}"
    if (own := here["protocol"]["metric"]) != metric:
        return f"{shown} (KID-{own})"
    if first is None or first is here:
        return shown
    if here["protocol"] != first["protocol"]:
        return f"{shown} (other protocol)"
    difference, error = here["kid"] - first["kid"], hypot(here["kid_se"], first["kid_se"])
    return f"{shown} ({difference / error:+.1f} se)" if difference else f"{shown} (same)"


def table(found: dict[str, Measurements]) -> list[str]:
    """Lines of columns: the methods, best first at the first revision, the baseline; then each revision."""
    first = next(iter(found.values()))
    names = sorted(first, key=lambda name: first[name]["kid"])
    names += sorted({name for each in found.values() for name in each} - set(names))
    metric = next(iter(first.values()))["protocol"]["metric"]
    rows = [[cell(each.get(name), first.get(name), metric) for each in found.values()] for name in names]
    return columns([[f"KID-{metric}", *found], *([name, *row] for name, row in zip(names, rows))])


def run(revisions: Sequence[str]) -> None:
    """Prints the table of the revisions, or of HEAD, its experiments and the workspace."""
    if revisions:
        found = {revision: measurements(revision) for revision in revisions}
    else:
        found = {"HEAD": measurements("HEAD")}
        with Repo() as repo:
            names = [name for entries in repo.experiments.ls().values() for name, _ in entries]
        found |= {name: measurements(name) for name in names}
        if (here := measurements(WORKSPACE)) not in found.values():
            found[WORKSPACE] = here
    print(*table(found), sep="\n")
    boards = {revision: rows for revision in found if (rows := board(revision))}
    if boards:
        write_page(boards)
        print(f"page: {PAGE}")
