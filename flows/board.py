"""What a flow run shows in the dashboard: its progress, then its results."""

from __future__ import annotations

import base64
import json
import os
import re
import time
from pathlib import Path

from prefect import get_client
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.client.schemas.actions import ArtifactUpdate

from flows.graph import Stage
from stages.common.paths import NEIGHBOURS, REPORTS, SAMPLES

PERIOD = 3.0  # seconds between updates: SQLite serves one writer at a time
BAR = re.compile(r"(\d+)%\|.*<([\d:]+)")  # tqdm: percent, bar, time used < time left
FILES = "MULTISCALE_FILES"  # the address at which the dashboard serves reports/


class Board:
    """State, percent and ETA of every stage of a flow run: a table, and one bar for all."""

    def __init__(self, stages: list[Stage]):
        self.rows: dict[str, dict[str, str]] = {}
        for stage in stages:
            self.put(stage.address, "waiting", 0)
        self.shown, self.due = [*self.rows.values()], 0.0
        self.table = create_table_artifact(self.shown, "stages", "Every stage of this run")
        self.progress = create_progress_artifact(0.0, "progress", "Stages that are done, and those that run in part")

    def put(self, address: str, state: str, percent: int = 100, remaining: str = "") -> None:
        """Notes the state of a stage and how long it still takes."""
        self.rows[address] = {"stage": address, "state": state, "done": f"{percent}%", "ETA": remaining}

    def read(self, address: str, line: str) -> bool:
        """Takes the progress from a line that a stage prints; returns whether there is any in it."""
        if found := BAR.search(line):
            self.put(address, "running", int(found[1]), found[2])
        return bool(found)

    def publish(self, last: bool = False) -> None:
        """Brings the dashboard up to date, at most every few seconds."""
        table = [*self.rows.values()]
        if table == self.shown or (time.monotonic() < self.due and not last):
            return
        self.shown, self.due = table, time.monotonic() + PERIOD
        get_client(sync_client=True).update_artifact(self.table, ArtifactUpdate(data=json.dumps(table)))
        update_progress_artifact(self.progress, sum(int(row["done"].rstrip("%")) for row in table) / len(table))


def show_results(done: set[str], changed: bool) -> None:
    """Shows what the stages that are done have left: the leaderboard, the report and, where it changed, the pictures.

    Pictures travel inside the artifact: those of an old run stay what they were.
    """
    if changed:
        methods = sorted(address.removeprefix("sample@") for address in done if address.startswith("sample@"))
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
