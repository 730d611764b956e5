"""What a flow run shows in the dashboard: its progress, then its results."""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path

from prefect import get_client, get_run_logger
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.schemas.actions import ArtifactUpdate

from flows.graph import Stage, is_sample
from flows.scheduler import Scheduler, clock
from stages.common.paths import NEIGHBOURS, REPORTS, SAMPLES

PERIOD = 3.0  # seconds between updates: SQLite serves one writer at a time
FILES = "MULTISCALE_FILES"  # the address at which the dashboard serves reports/


class Board:
    """State, percent and ETA of every stage of a flow run: a table, and one bar for all."""

    def __init__(self, stages: list[Stage]):
        self.shown, self.due = [_row(stage.address, "waiting") for stage in stages], 0.0
        self.table = create_table_artifact(self.shown, "stages", "Every stage of this run")
        self.progress = create_progress_artifact(0.0, "progress", "Stages that are done, and those that run in part")

    def say(self, line: str) -> None:
        """Puts a line into the log of the flow run."""
        get_run_logger().info(line)

    def look(self, run: Scheduler) -> None:
        """Brings the dashboard up to date, at most every few seconds."""
        if time.monotonic() >= self.due:
            self._publish(run)

    def ended(self, run: Scheduler, stage: Stage) -> None:
        """Shows nothing: the next look does."""

    def close(self, run: Scheduler) -> None:
        """Brings the dashboard up to date; what still waits is held back."""
        self._publish(run, closed=True)

    def _publish(self, run: Scheduler, closed: bool = False) -> None:
        now = time.monotonic()
        table = [_state(run, stage, now, closed) for stage in run.stages]
        if table == self.shown:
            return
        self.shown, self.due = table, now + PERIOD
        get_client(sync_client=True).update_artifact(self.table, ArtifactUpdate(data=json.dumps(table)))
        update_progress_artifact(self.progress, sum(int(row["done"].rstrip("%")) for row in table) / len(table))


def _row(address: str, state: str, percent: int = 0, remaining: str = "") -> dict[str, str]:
    return {"stage": address, "state": state, "done": f"{percent}%", "ETA": remaining}


def _state(run: Scheduler, stage: Stage, now: float, closed: bool) -> dict[str, str]:
    """The row of a stage."""
    if end := run.ends.get(stage.address):
        return _row(stage.address, end.name.lower(), 100 if end.good else 0)
    if stage.address in run.running:
        percent, left = run.progress(stage.address, now)
        return _row(stage.address, "running", percent, clock(left) if left else "")
    held = f"held back by {', '.join(sorted(set(stage.needs) - run.done))}"
    return _row(stage.address, held if closed else "waiting")


def show_results(done: set[str], changed: bool) -> None:
    """Shows what the stages that are done have left: the leaderboard, the report and, where it changed, the pictures.

    Pictures travel inside the artifact: those of an old run stay what they were.
    """
    if changed:
        methods = sorted(address.partition("@")[2] for address in done if is_sample(address))
        of = [
            (SAMPLES / name / "grid.png", SAMPLES / name / "strip.png", NEIGHBOURS / f"{name}.png") for name in methods
        ]
        show_pictures("samples", [path for paths in of for path in paths])
    if "report" not in done:
        return
    if (table := REPORTS / "report.md").exists():
        create_markdown_artifact(table.read_text(), "leaderboard")
    if changed:
        show_pictures("plots", sorted(REPORTS.glob("*.png")))
    if address := os.environ.get(FILES):
        create_link_artifact(f"{address}/report.html", "The report of the last run", "report")


def show_pictures(key: str, paths: list[Path]) -> None:
    """Shows those of the pictures that are there, in one artifact that holds them."""
    parts = [
        f"### {path}\n\n![{path}](data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()})"
        for path in paths
        if path.exists()
    ]
    if parts:
        create_markdown_artifact("\n\n".join(parts), key)
