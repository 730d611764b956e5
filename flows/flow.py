"""The run as a Prefect flow, a task for each stage, for the dashboard."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Annotated, Literal

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Completed, Failed, State
from pydantic import Field

from flows import inputs, run
from flows.board import Board, show_results
from flows.graph import Stage
from flows.scheduler import Launch, Watcher, Work
from flows.work import End
from stages.common.errors import BadInput

STATES = {"Completed": Completed, "Cached": Completed, "Failed": Failed, "Cancelled": Cancelled}

Recipe = Literal[tuple(inputs.recipes()) or ("",)]  # what the dashboard's form offers
# Set by the command line, which refuses bad input in one line before a server is asked, and shows the run itself too.
prepared: ContextVar[AbstractContextManager[list[Stage]] | None] = ContextVar("prepared", default=None)
beside: ContextVar[Sequence[Watcher]] = ContextVar("beside", default=())


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
        with prepared.get() or inputs.prepared(targets, recipe, overrides, experiment, slots) as stages:
            watchers = [Board(stages), *beside.get()]
            done, fault = run.bring(stages, slots, experiment, as_tasks(), watchers)
            show_results(done.done, bool(done.named("Completed")))
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
    end = bring(get_run_logger().info)
    return STATES[end.name](name=end.name, message=end.message)
