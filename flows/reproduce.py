"""Runs what is stale of the pipeline, several stages at once, with a dashboard to watch it.

python -m flows.reproduce                        # everything that `dvc repro` would run
python -m flows.reproduce msf train@dit          # methods, stages or groups of stages, with what they need
python -m flows.reproduce --recipe embedded -S training.lr=0.0007 --name lr7

Runs show in the dashboard that `make dashboard` started here, or on the server at PREFECT_API_URL. Without either, a
server starts for the one run, which takes some ten seconds.
"""

from __future__ import annotations

import argparse

from stages.common.harness import launch

if __name__ == "__main__":  # first: the imports below take seconds
    parser = argparse.ArgumentParser(
        prog="python -m flows.reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", help="a method, a stage or a group of stages; all by default")
    parser.add_argument("--recipe", help="a recipe to switch to first (python -m stages.recipe lists them)")
    parser.add_argument("-S", dest="overrides", metavar="KEY=VALUE", action="append", default=[], help="a setting")
    parser.add_argument("--name", dest="experiment", help="save the result as a DVC experiment of this name")
    parser.add_argument("--slots", type=int, help="stages at once; by default as many as there are cores for")
    launch("flows.reproduce", **vars(parser.parse_args()))

import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Annotated, Any, Literal

from prefect import flow, get_run_logger
from prefect.states import Completed, Failed, State
from pydantic import Field

from flows import connection, graph, inputs, process
from flows.board import show_results
from flows.scheduler import Scheduler
from stages.common.errors import BadInput
from stages.common.paths import EXPERIMENT

Recipe = Literal[tuple(inputs.recipes()) or ("",)]  # what the dashboard's form offers
# Set by the command line, which refuses bad input in one line before a server is asked.
_prepared: ContextVar[AbstractContextManager[list[graph.Stage]] | None] = ContextVar("prepared", default=None)


@flow(name="reproduce")
def reproduce(
    targets: list[str] = [],  # noqa: B006 - Prefect shows it in the form
    recipe: Recipe | None = None,
    overrides: list[str] = [],  # noqa: B006
    experiment: str | None = None,
    slots: Annotated[int, Field(ge=1)] | None = None,
) -> State:
    """Brings the pipeline up to date, as `dvc repro` would, several stages at once.

    Args:
        targets: Methods (msf), stages (train@dit) or groups of stages (train), with all that they need. Empty: all.
        recipe: A recipe to switch to first. Unsaved edits of params/experiment.yaml are never overwritten.
        overrides: Settings to change, as for `dvc exp run -S`: KEY=VALUE (training.lr=0.0007), or +KEY=VALUE for one
            that the experiment leaves at its default (+parts.msf-1.training.lr=0.0007).
        experiment: A name to save the result under as a DVC experiment (`dvc exp show`).
        slots: Stages that run at once; by default as many as there are cores for.
    """
    try:
        with _prepared.get() or inputs.prepared(targets, recipe, overrides, experiment, slots) as stages:
            return _run(stages, slots, experiment)
    except BadInput as error:
        return Failed(message=f"error: {error}")


def _run(stages: list[graph.Stage], slots: int | None, experiment: str | None) -> State:
    stale = any(not stage.current for stage in stages)
    order = graph.locked() if stale else []
    with _placed(slots) if stale else nullcontext(1) as at_once:
        scheduler = Scheduler(stages, at_once)
        try:
            scheduler.execute()
        finally:
            if stale:
                graph.restore_order(order, stages)
    ran, cached = (scheduler.named(name) for name in ("Completed", "Cached"))
    show_results(scheduler.done, bool(ran))
    failed = [f"{address}: {scheduler.states[address].message}" for address in scheduler.named("Failed", "Crashed")]
    if failed:
        held = f"; held back: {', '.join(scheduler.waiting)}" if scheduler.waiting else ""
        return Failed(message="; ".join(failed) + held)
    if experiment and (fault := _save(experiment, stages, scheduler.environment)):
        return Failed(message=fault)
    return Completed(message=f"{len(ran)} stages ran, {len(cached)} were up to date")


@contextmanager
def _placed(slots: int | None) -> Iterator[int]:
    """One Ray cluster for all stages, where they use workers; yields how many stages may run at once."""
    if not EXPERIMENT.exists():
        yield slots or 2
        return
    from flows import cluster  # knows every method, and so torch, which takes seconds
    from stages.common import settings

    run = settings.load().run
    at_once = cluster.slots(run, slots)
    if slots and at_once < slots:
        get_run_logger().warning("one stage at a time: without run.workers, stages do not ask for their share of a GPU")
    with cluster.shared(run):
        yield at_once


def _save(experiment: str, stages: list[graph.Stage], environment: dict[str, str]) -> str | None:
    """Saves the result as a DVC experiment; returns the error.

    Commits these stages only: the others may be stale, and would then count as up to date.
    """
    lines: list[str] = []
    command = ["dvc", "exp", "save", "--name", experiment, *(stage.address for stage in stages)]
    if process.run(command, environment, lines.append, threading.Event()):
        return next((line for line in reversed(lines) if line.startswith("ERROR: ")), f"{experiment}: not saved")
    get_run_logger().info(lines[-1])
    return None


def run(**given: Any) -> None:
    """Runs the flow; the process ends with exit code 1 unless all of it is done."""
    with connection.server(), inputs.prepared(**given) as stages:
        _prepared.set(nullcontext(stages))
        state = reproduce(**given, return_state=True)
    print(state.message, file=sys.stderr if state.is_failed() else sys.stdout)
    sys.exit(not state.is_completed())
