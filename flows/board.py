"""What a run shows in the dashboard: its progress while it lasts, and what came out of it."""

from __future__ import annotations

import base64
import json
import os
import re
import time
from collections.abc import Iterator
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
    """State, percent and ETA of every stage of a run: a table, and one bar for all."""

    def __init__(self, stages: list[Stage]):
        self.rows = {stage.address: ("waiting", 0, "") for stage in stages}
        self.shown, self.due = self._table(), 0.0
        self.table = create_table_artifact(self.shown, "stages", "Every stage of this run")
        self.progress = create_progress_artifact(0.0, "progress", "Stages that are done, and those that run in part")

    def put(self, address: str, state: str, percent: int = 100, remaining: str = "") -> None:
        """Notes how a stage stands and how long it still takes."""
        self.rows[address] = state, percent, remaining

    def read(self, address: str, line: str) -> bool:
        """Takes the progress from a line that a stage prints; returns whether there is any in it."""
        if found := BAR.search(line):
            self.put(address, "running", int(found[1]), found[2])
        return bool(found)

    def publish(self, last: bool = False) -> None:
        """Brings the dashboard up to date, at most every few seconds."""
        table = self._table()
        if table == self.shown or (time.monotonic() < self.due and not last):
            return
        self.shown, self.due = table, time.monotonic() + PERIOD
        get_client(sync_client=True).update_artifact(self.table, ArtifactUpdate(data=json.dumps(table)))
        update_progress_artifact(self.progress, sum(percent for _, percent, _ in self.rows.values()) / len(self.rows))

    def _table(self) -> list[dict[str, str]]:
        return [
            {"stage": address, "state": state, "done": f"{percent}%", "ETA": remaining}
            for address, (state, percent, remaining) in self.rows.items()
        ]


def show_results(done: set[str], changed: bool) -> None:
    """Shows what the stages that are done have left: the leaderboard, the report, and what changed in pictures.

    Pictures travel inside the artifact: those of an old run stay what they were.
    """
    methods = sorted(address.removeprefix("sample@") for address in done if address.startswith("sample@"))
    if changed:
        kinds = [
            (SAMPLES / name / "grid.png", SAMPLES / name / "strip.png", NEIGHBOURS / f"{name}.png") for name in methods
        ]
        show_pictures("samples", [path for paths in kinds for path in paths])
    if "report" not in done:
        return
    for number, (table, protocol) in enumerate(_tables(REPORTS / "leaderboard.md"), 1):
        create_table_artifact(table, "leaderboard" if number == 1 else f"leaderboard-{number}", protocol)
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


def _tables(path: Path) -> Iterator[tuple[list[dict[str, str]], str]]:
    """The tables of a Markdown file, a row a mapping from heading to cell, each with the paragraph that follows it."""
    blocks = path.read_text().split("\n\n") if path.exists() else []
    for block, after in zip(blocks, [*blocks[1:], ""]):
        if block.startswith("|"):
            heads, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines())
            yield [dict(zip(heads, row)) for row in rows], after.strip()
