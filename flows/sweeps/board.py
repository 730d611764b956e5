"""A sweep in the dashboard: its progress while it runs, then the ranked table and its pictures."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.states import Completed, Failed, State

from flows import connection
from flows.board import show_pictures
from flows.sweeps import search
from flows.sweeps.space import load
from stages.common.errors import BadInput


@flow(name="sweep", flow_run_name="{name}", log_prints=True)
def sweep(name: str) -> State:
    """Searches settings; progress, the ranked table and its pictures are artifacts of the run.

    Args:
        name: A sweep of params/sweeps (dit, msf, ssd). One that was cut off goes on.
    """
    connection.end_with_dashboard()
    try:
        load(name)  # refused before anything is shown
        table = search.run(name, _shown(name))
    except BadInput as error:
        return Failed(message=f"error: {error}")
    create_markdown_artifact(table.read_text(), key=f"sweep-{name}-trials", description=f"The sweep {name}, ranked")
    plots = [table.parent / f"{kind}.png" for kind in ("settings", "parallel")]
    show_pictures(f"sweep-{name}-plots", f"The settings that the sweep {name} tried, and how good each was", plots)
    return Completed(message=f"{table} ranks the trials")


def _shown(name: str) -> search.OnTrial:
    """Shows in the dashboard how many trials have ended."""
    progress = create_progress_artifact(0.0, key=f"sweep-{name}", description=f"Trials of the sweep {name}")

    def on_trial(records: list[dict[str, Any]], total: int) -> None:
        failed = sum(record["state"] == "failed" for record in records)
        about = f"{len(records)} of {total} trials of the sweep {name}" + (f", {failed} failed" if failed else "")
        update_progress_artifact(progress, 100 * len(records) / total, description=about)

    return on_trial
