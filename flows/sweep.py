"""Searches settings with Ray Tune: a sweep of params/sweeps, on this machine or on the cluster at RAY_ADDRESS.

python -m flows.sweep            # list the sweeps
python -m flows.sweep dit        # run one, or go on with it after a kill

Each trial trains the method's parts on a share of the training images, samples, and is measured as the pipeline
measures. Trials that train the same thing share it: settings of the sampler alone train nothing. The pipeline's own
stages up to `decompose`, `classifier` and `reference` must have run (dvc repro).

It leaves reports/sweeps/NAME: trials.parquet (settings, metrics and history of every trial), trials.md (ranked),
settings.png, parallel.png; and the winner as a recipe, which is then run at full budget:

python -m stages.recipe dit-best && dvc repro

How a sweep is written is said in flows/space.py; params/sweeps has three.
"""

from __future__ import annotations

import argparse
from typing import Any

from prefect import flow
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.states import Completed, Failed, State

from flows import search
from flows.board import show_pictures
from flows.space import SWEEPS, load
from stages.common.errors import BadInput
from stages.common.harness import guarded


@flow(name="sweep", log_prints=True)
def sweep(name: str) -> State:
    """Searches settings; progress, the ranked table and its pictures are artifacts of the run.

    Args:
        name: A sweep of params/sweeps (dit, msf, ssd). One that was cut off goes on.
    """
    try:
        load(name)  # refused before anything is shown
        table = search.run(name, _shown(name))
    except BadInput as error:
        return Failed(message=f"error: {error}")
    create_markdown_artifact(table.read_text(), key=f"sweep-{name}-trials", description=f"The sweep {name}, ranked")
    show_pictures(f"sweep-{name}-plots", [table.parent / f"{kind}.png" for kind in ("settings", "parallel")])
    return Completed(message=f"{table} ranks the trials")


def _shown(name: str) -> search.OnTrial:
    """Shows in the dashboard how many trials have ended."""
    progress = create_progress_artifact(0.0, key=f"sweep-{name}", description=f"Trials of the sweep {name}")

    def on_trial(records: list[dict[str, Any]], total: int) -> None:
        failed = sum(record["state"] == "failed" for record in records)
        about = f"{len(records)} of {total} trials of the sweep {name}" + (f", {failed} failed" if failed else "")
        update_progress_artifact(progress, 100 * len(records) / total, description=about)

    return on_trial


def show() -> None:
    """Prints the sweeps, each with the first line of its file."""
    for path in sorted(SWEEPS.glob("*.yaml")):
        print(f"{path.stem:20} {path.read_text().partition(chr(10))[0].lstrip('# ')}")


def start(name: str) -> None:
    """Runs a sweep without a dashboard and prints its table."""
    print(search.run(name).read_text())


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m flows.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", help="a sweep of params/sweeps; without it they are listed")
    given = parser.parse_args()
    if given.name:
        guarded(start, name=given.name)
    else:
        guarded(show)


if __name__ == "__main__":
    main()
