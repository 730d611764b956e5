"""Runs planned stages, several at once, each as a Prefect task that calls `dvc repro` for that stage alone."""

from __future__ import annotations

import os
import queue
import re
import sys
import threading
from pathlib import Path

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Completed, Failed, State

from flows import process
from flows.board import PERIOD, Board
from flows.graph import Stage

# Failures that pass: another DVC process in the way, a Ray worker that is gone. Nothing else is tried again.
TRANSIENT = re.compile(r"Unable to acquire lock|is busy, it is being blocked|(Worker|Actor|Node)\w*(Died|Crashed)")
EXCEPTION = re.compile(r"[\w.]+(Error|Exception|Interrupt)\b")


class Scheduler:
    """The stages of one flow run: which wait, run and have ended."""

    def __init__(self, stages: list[Stage], slots: int):
        self.waiting = {stage.address: stage for stage in stages}
        self.running: dict[PrefectFuture[State], str] = {}
        self.futures: dict[str, PrefectFuture[State]] = {}
        self.states: dict[str, State] = {}
        self.slots, self.environment = slots, environment()
        self.stop = threading.Event()
        self.ended: queue.SimpleQueue[PrefectFuture[State]] = queue.SimpleQueue()
        self.board = Board(stages)

    def execute(self) -> None:
        """Runs every stage that can run. A stage that fails holds back only those that need it.

        However this ends, no stage is left running.
        """
        try:
            self._start()
            while self.running:
                self._collect()
                self._start()
        finally:
            self.stop.set()
            for future in self.running:
                future.wait()
        for address, stage in self.waiting.items():
            self.board.put(address, f"held back by {', '.join(sorted(set(stage.needs) - self.done))}", 0)
        self.board.publish(last=True)

    @property
    def done(self) -> set[str]:
        """The stages that are up to date."""
        return {address for address, state in self.states.items() if state.is_completed()}

    def named(self, *names: str) -> list[str]:
        """The stages that ended in a state of one of these names."""
        return [address for address, state in self.states.items() if state.name in names]

    def _start(self) -> None:
        """Starts stages whose needs are done, while slots are free.

        First those that the longest chain of stages waits for, then those that most stages wait for.
        """
        ready = [stage for stage in self.waiting.values() if self.done.issuperset(stage.needs)]
        ready = sorted(ready, key=lambda stage: stage.urgency, reverse=True)[: self.slots - len(self.running)]
        for stage in ready:
            del self.waiting[stage.address]
            needs = [self.futures[need] for need in stage.needs]  # done; Prefect draws the graph from them
            self.board.put(stage.address, "running", 0)
            future = reproduce_stage.submit(stage.address, stage.current, self, wait_for=needs)
            self.running[future] = stage.address
            self.futures[stage.address] = future
            future.add_done_callback(self.ended.put)

    def _collect(self) -> None:
        """Waits until a stage ends, or for a moment."""
        try:
            future = self.ended.get(timeout=PERIOD)
        except queue.Empty:
            return
        finally:
            self.board.publish()
        future.wait()
        address = self.running.pop(future)
        self.states[address] = future.state
        self.board.put(address, future.state.name.lower(), 100 if future.state.is_completed() else 0)


def environment() -> dict[str, str]:
    """The environment of a stage."""
    return os.environ | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONUNBUFFERED": "1",  # output as it comes
    }


def _is_transient(_task: object, _run: object, state: State) -> bool:
    return bool(TRANSIENT.search(state.message or ""))


@task(
    name="stage",
    task_run_name="{address}",
    cache_policy=NO_CACHE,  # DVC is the cache
    persist_result=False,
    retries=3,
    retry_delay_seconds=[1, 2, 4],
    retry_jitter_factor=0.5,
    retry_condition_fn=_is_transient,
)
def reproduce_stage(address: str, current: bool, scheduler: Scheduler) -> State:
    """Brings one stage up to date. Its state is Completed, Cached (nothing to do), Failed or Cancelled."""
    if current:
        return Completed(name="Cached", message="up to date")
    lines: list[str] = []
    log = get_run_logger()

    def tell(line: str) -> None:
        if not scheduler.board.read(address, line):
            lines.append(line)
            log.info(line)

    try:
        command = ["dvc", "--wait-for-lock", "repro", "-s", address]
        code = process.run(command, scheduler.environment, tell, scheduler.stop)
    except process.Stopped:
        return Cancelled(message="stopped with its flow run")
    if code:
        return Failed(message=_reason(lines, code))
    if any(line.startswith("Running stage") for line in lines):
        return Completed(message="ran")
    said = [line for line in lines if line.startswith(f"Stage '{address}'")]
    return Completed(name="Cached", message=said[-1] if said else "up to date")


def _reason(lines: list[str], code: int) -> str:
    """The one line that says why a stage failed: its own, else that of its exception, else DVC's."""
    own = [line for line in lines if line.startswith("error: ")]
    raised = [line for line in lines if EXCEPTION.match(line)]
    dvc = [line for line in lines if line.startswith("ERROR: ")]
    return (own or raised or dvc or [f"dvc ended with exit code {code}"])[-1]
