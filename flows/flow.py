"""The run as a Prefect flow, a task for each stage, for the dashboard."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Annotated, Literal

from prefect import flow, get_run_logger, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import FailedRun
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Completed, Failed, State
from pydantic import Field

from flows import connection, inputs, run
from flows.board import Board
from flows.graph import Stage
from flows.scheduler import Launch, Watcher, Work
from flows.work import End
from stages.common.errors import BadInput
from stages.common.paths import RECIPES
from stages.common.reading import named

STATES = {"Completed": Completed, "Cached": Completed, "Failed": Failed, "Cancelled": Cancelled}

Recipe = Literal[tuple(named(RECIPES)) or ("",)]  # what the dashboard's form offers
# Set by the command line, which refuses bad input in one line before a server is asked, and shows the run itself too.
prepared: ContextVar[AbstractContextManager[list[Stage]] | None] = ContextVar("prepared", default=None)
beside: ContextVar[Sequence[Watcher]] = ContextVar("beside", default=())


def one_line(record: logging.LogRecord) -> bool:
    """Has a run that failed in the log as its line; Prefect would tell where in its own code that was raised."""
    if record.exc_info and isinstance(record.exc_info[1], FailedRun):
        record.msg, record.args, record.exc_info = str(record.exc_info[1]), (), None
    return True


for name in ("prefect.flow_runs", "prefect.engine"):
    logging.getLogger(name).addFilter(one_line)


def run_name() -> str:
    """What a run does: its targets, and what it changes first."""
    given = runtime.flow_run.parameters
    parts = [
        ", ".join(given.get("targets") or ["everything"]),
        f"on {given['recipe']}" if given.get("recipe") else "",
        f"with {', '.join(given['overrides'])}" if given.get("overrides") else "",
        f"as {given['experiment']}" if given.get("experiment") else "",
    ]
    return " ".join(filter(None, parts))


@flow(name="reproduce", flow_run_name=run_name)
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
        recipe: A recipe to switch to first, for later runs too. Uncommitted edits of the experiment stay: they are
            refused.
        overrides: Settings to change for this run alone, as for `dvc exp run -S`: KEY=VALUE (training.lr=0.0007), or
            +KEY=VALUE for one that the experiment leaves at its default (+parts.msf-1.training.lr=0.0007). They are put
            back after the run, so the nightly run does not have them; give a name to keep the result.
        experiment: A name to save the result under as a DVC experiment (`dvc exp show`).
        slots: Stages that run at once; by default as many as there are cores for.
    """
    connection.end_with_dashboard()
    try:
        with prepared.get() or inputs.prepared(targets, recipe, overrides, experiment, slots, passing=True) as stages:
            board = Board(stages)
            done, fault = run.bring(stages, slots, experiment, as_tasks(), [board, *beside.get()])
            board.show_results(done.done)
            return Failed(message=fault) if fault else Completed(message=run.summary(done))
    except BadInput as error:
        return Failed(message=f"error: {error}")


def as_tasks() -> Launch:
    """Starts each stage as a task of the flow."""
    futures: dict[str, PrefectFuture[State]] = {}

    def launch(stage: Stage, bring: Work, ended: Callable[[End], None]) -> None:
        needs = [futures[need] for need in stage.needs]  # done; Prefect draws the graph from them
        future = futures[stage.address] = bring_stage.submit(stage.address, bring, wait_for=needs)
        future.add_done_callback(lambda future: ended(_end(future)))

    return launch


def _end(future: PrefectFuture[State]) -> End:
    try:
        future.wait()  # it is done; now it has the state that it ended in
    except Exception as error:  # the server is gone; the run must hear of it
        return End("Crashed", f"{type(error).__name__}: {error}")
    return End(future.state.name, future.state.message or "")


@task(name="stage", task_run_name="{address}", cache_policy=NO_CACHE, persist_result=False)  # DVC is the cache
def bring_stage(address: str, bring: Work) -> State:
    """Brings one stage up to date."""
    logger = get_run_logger()
    end = bring(lambda line: logger.info(f"{address}: {line}"))  # the log of the run has the lines of all stages
    return STATES[end.name](name=end.name, message=end.message)
