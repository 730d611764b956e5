"""One run of the pipeline: what is stale of the planned stages, several at once, and the result as an experiment."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from flows import graph, process, warm, work
from flows.scheduler import Launch, Scheduler, Watcher
from flows.work import Tell
from stages.common.paths import EXPERIMENT
from stages.common.reading import read_yaml


def bring(
    stages: list[graph.Stage], slots: int | None, experiment: str | None, launch: Launch, watchers: Sequence[Watcher]
) -> tuple[Scheduler, str | None]:
    """Brings stages up to date; returns how they ended, and in one line what went wrong."""
    scheduler = Scheduler(stages, launch, watchers)

    def say(line: str) -> None:
        for watcher in watchers:
            watcher.say(line)

    if all(stage.current for stage in stages) and not graph.ORDER.exists():
        scheduler.execute(lambda: slots or 1)
    else:
        order = graph.order_before()
        try:
            with _placed(slots, say) as find_slots, _warm(stages) as scheduler.environment:
                scheduler.execute(find_slots)
        finally:
            graph.restore_order(order, stages)
    failed = [f"{address}: {end.message}" for address, end in scheduler.ends.items() if not end.good]
    if failed:
        held = f"; held back: {', '.join(scheduler.waiting)}" if scheduler.waiting else ""
        return scheduler, "; ".join(failed) + held
    graph.ORDER.unlink(missing_ok=True)
    return scheduler, _save(experiment, stages, say) if experiment else None


def summary(scheduler: Scheduler) -> str:
    """What a run without a fault has done."""
    ran, cached = (len(scheduler.named(name)) for name in ("Completed", "Cached"))
    return f"{ran} stages ran, {cached} were up to date"


@contextmanager
def _placed(asked: int | None, say: Tell) -> Iterator[Callable[[], int]]:
    """One Ray cluster for all stages, where they use workers; yields what finds out how many stages may run at once."""

    def find_slots() -> int:
        if not EXPERIMENT.exists():
            return asked or 2
        from flows import cluster  # knows every method, and so torch, which takes seconds
        from stages.common import settings

        slots = cluster.slots(settings.load().run, asked)
        if asked and slots < asked:
            say("one stage at a time: without run.workers, stages do not ask for their share of a GPU")
        return slots

    run = read_yaml(EXPERIMENT).get("run") if EXPERIMENT.exists() else None
    if isinstance(run, dict) and run.get("workers"):  # the stage `code` refuses anything else
        from flows import cluster
        from stages.common import settings

        with cluster.shared(settings.load().run):
            yield find_slots
    else:
        yield find_slots


@contextmanager
def _warm(stages: list[graph.Stage]) -> Iterator[dict[str, str]]:
    """The environment of stages: where several run, one in which they start at once."""
    stale = sum(not stage.current for stage in stages)
    if EXPERIMENT.exists() and stale >= warm.WORTH and sys.platform == "linux":
        with warm.serving(work.environment()) as folder:
            yield work.environment(folder)
    else:
        yield work.environment()


def _save(experiment: str, stages: list[graph.Stage], say: Tell) -> str | None:
    """Saves the result as a DVC experiment; returns the error.

    Commits these stages only: the others may be stale, and would then count as up to date.
    """
    lines: list[str] = []
    command = ["dvc", "exp", "save", "--name", experiment, *(stage.address for stage in stages)]
    if process.run(command, work.environment(), lines.append, threading.Event()):
        return next((line for line in reversed(lines) if line.startswith("ERROR: ")), f"{experiment}: not saved")
    say(lines[-1])
    return None
