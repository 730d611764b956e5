"""What a flow run shows in the dashboard: its progress, then its results."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path
from uuid import UUID

from prefect import get_client, get_run_logger
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.schemas.actions import ArtifactUpdate

from flows.connection import REPORT
from flows.graph import Stage
from flows.previews import Previews, title_of
from flows.scheduler import Scheduler, clock
from stages.common.paths import NEIGHBOURS, REPORTS, SAMPLES

PERIOD = 3.0  # seconds between updates: SQLite serves one writer at a time
# In this order the table has its stages; what waits comes last.
ORDER = ("running", "failed", "crashed", "cancelled", "completed", "cached")


class Board:
    """State, percent and ETA of every stage of a flow run: a table, and one bar for all. At the end its results."""

    def __init__(self, stages: list[Stage]):
        self.before = _pictures()
        self.previews, self.trainings = Previews(), dict[Path, UUID]()
        self.shown, self.due = [_row(stage.address, "waiting") for stage in stages], 0.0
        self.table = create_table_artifact(
            self.shown, "stages", "Every stage of this run: what runs, what failed, what is done, what waits"
        )
        self.progress = create_progress_artifact(0.0, "progress", "Stages that are done, and those that run in part")

    def say(self, line: str) -> None:
        """Puts a line into the log of the flow run."""
        get_run_logger().info(line)

    def look(self, run: Scheduler) -> None:
        """Brings the dashboard up to date, at most every few seconds."""
        if time.monotonic() >= self.due:
            self._publish(run)
        self._show_previews(run.running)

    def ended(self, run: Scheduler, stage: Stage) -> None:
        """Shows the last picture of a training; the next look shows the rest."""
        self._show_previews([stage.address])

    def close(self, run: Scheduler) -> None:
        """Brings the dashboard up to date; what still waits is held back."""
        self._publish(run, closed=True)

    def show_results(self, done: set[str]) -> None:
        """Shows what a run has left: the pictures that it changed, the leaderboard and the report if it has them."""
        changed = sorted(path for path, digest in _pictures().items() if digest != self.before.get(path))
        samples = sorted((path for path in changed if path.parent != REPORTS), key=lambda path: (_method(path), path))
        methods = ", ".join(dict.fromkeys(map(_method, samples)))
        show_pictures("samples", f"Samples that this run changed: {methods}", samples)
        plots = [path for path in changed if path.parent == REPORTS]
        names = ", ".join(path.stem for path in plots)
        show_pictures("plots", f"Plots of the report that this run changed: {names}", plots)
        if "report" not in done:
            return
        if (table := REPORTS / "report.md").exists():
            create_markdown_artifact(table.read_text(), "leaderboard", "All methods compared, as this run left them")
        if address := os.environ.get(REPORT):
            create_link_artifact(address, "The report of the last run", "report", "All results on one page")

    def _show_previews(self, addresses: Iterable[str]) -> None:
        """Shows what trainings have learnt so far: an artifact for each, with its newest picture."""
        for path in self.previews.fresh(addresses):
            title, shown = title_of(path), markdown_of(path)
            if artifact := self.trainings.get(path):
                get_client(sync_client=True).update_artifact(artifact, ArtifactUpdate(data=shown, description=title))
            else:
                self.trainings[path] = create_markdown_artifact(shown, f"training-{path.parent.name}", title)

    def _publish(self, run: Scheduler, closed: bool = False) -> None:
        now = time.monotonic()
        table = sorted((_state(run, stage, now, closed) for stage in run.stages), key=_place)
        if table == self.shown:
            return
        self.shown, self.due = table, now + PERIOD
        get_client(sync_client=True).update_artifact(self.table, ArtifactUpdate(data=json.dumps(table)))
        update_progress_artifact(self.progress, sum(int(row["done"].rstrip("%")) for row in table) / len(table))


def _place(row: dict[str, str]) -> int:
    return ORDER.index(row["state"]) if row["state"] in ORDER else len(ORDER)


def _row(address: str, state: str, percent: int = 0, remaining: str = "") -> dict[str, str]:
    return {"stage": address, "state": state, "done": f"{percent}%", "ETA": remaining}


def _state(run: Scheduler, stage: Stage, now: float, closed: bool) -> dict[str, str]:
    """The row of a stage."""
    if end := run.ends.get(stage.address):
        return _row(stage.address, end.name.lower(), 100 if end.good else 0)
    if stage.address in run.running:
        percent, left = run.progress(stage.address, now)
        return _row(stage.address, "running", percent, clock(left) if left else "")
    if not closed:
        return _row(stage.address, "waiting")
    missing = ", ".join(sorted(set(stage.needs) - run.done))
    return _row(stage.address, f"held back by {missing}" if missing else "not started")


def _pictures() -> dict[Path, str]:
    """The pictures of samples and of the report that are there, with what tells whether one has changed."""
    found = [*SAMPLES.glob("[!.]*/*.png"), *NEIGHBOURS.glob("*.png"), *REPORTS.glob("*.png")]
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def _method(picture: Path) -> str:
    return picture.stem if picture.parent == NEIGHBOURS else picture.parent.name


def markdown_of(picture: Path) -> str:
    """A picture under its path, held in the text."""
    return f"### {picture}\n\n![{picture}](data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()})"


def show_pictures(key: str, description: str, paths: list[Path]) -> None:
    """Shows those of the pictures that are there, in one artifact that holds them: an old run's stay what they were."""
    if parts := [markdown_of(path) for path in paths if path.exists()]:
        create_markdown_artifact("\n\n".join(parts), key, description)
