"""Runs planned stages, several at once: starts each when all that it needs is done, and tells how far they are."""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from flows import estimate, work
from flows.estimate import Estimate, Running
from flows.graph import Stage
from flows.work import End, Tell

TICK = 1.0  # seconds between two looks at the run
# tqdm: percent, bar, time used < hours, minutes and seconds left
BAR = re.compile(r"(\d+)%\|.*<(?:\?|(?:(\d+):)?(\d+):(\d+))")

Work = Callable[[Tell], End]  # brings a stage up to date and tells the lines that it prints
Launch = Callable[[Stage, Work, Callable[[End], None]], None]  # starts a stage's work and hands over how it ended


class Watcher(Protocol):
    """Shows a run to somebody."""

    def say(self, line: str) -> None:
        """A line that is worth reading."""

    def look(self, run: Scheduler) -> None:
        """Is called every second, from when it is known how many stages run at once."""

    def ended(self, run: Scheduler, stage: Stage) -> None:
        """Is called when a stage has ended, but not when it was ended with the run."""

    def close(self, run: Scheduler) -> None:
        """Is called at the end of the run, however it ends."""


class Scheduler:
    """The stages of one run: which wait, run and have ended."""

    def __init__(self, stages: list[Stage], launch: Launch, watchers: Sequence[Watcher]):
        self.stages = stages
        self.waiting = {stage.address: stage for stage in stages}
        self.running: dict[str, Running] = {}
        self.ends: dict[str, End] = {}
        self.slots, self.launch, self.watchers = 1, launch, watchers
        self.environment = work.environment()  # of stages
        self.estimate = Estimate(stages, estimate.read())
        self.stop = threading.Event()
        self.ended: queue.SimpleQueue[tuple[Stage, End]] = queue.SimpleQueue()

    def execute(self, slots: Callable[[], int]) -> None:
        """Runs every stage that can run. A stage that fails holds back only those that need it.

        One starts at once, before `slots` has found out how many may run at once. However this ends, no stage is left
        running.
        """
        try:
            self._start()
            self.slots = slots()
            self._start()
            while self.running:
                for watcher in self.watchers:
                    watcher.look(self)
                try:
                    stage, end = self.ended.get(timeout=TICK)
                except queue.Empty:
                    continue
                self._end(stage, end)
                for watcher in self.watchers:
                    watcher.ended(self, stage)
                self._start()
        finally:
            self.stop.set()
            while self.running:
                self._end(*self.ended.get())
            for watcher in self.watchers:
                watcher.close(self)

    @property
    def done(self) -> set[str]:
        """The stages that are up to date."""
        return {address for address, end in self.ends.items() if end.good}

    def named(self, *names: str) -> list[str]:
        """The stages that ended in one of these ways."""
        return [address for address, end in self.ends.items() if end.name in names]

    def progress(self, address: str, now: float) -> tuple[int, float | None]:
        """The percent of a running stage that is done, below 100, and the seconds that it still takes, None if unknown.

        By the stage's own bar while that moves, else by the time that it is expected to take.
        """
        stage, left = self.running[address], self.estimate.remaining(address, self.running, now)
        used = now - stage.since
        percent = stage.percent if stage.ends or left is None else 100 * used / max(used + left, 1e-9)
        return min(int(percent), 99), left

    def left(self, now: float) -> float | None:
        """The seconds until everything has ended, as far as anybody knows."""
        return self.estimate.left(self.waiting, self.running, self.done, self.slots, now)

    def _start(self) -> None:
        """Starts stages whose needs are done, while slots are free."""
        for stage in self.estimate.choose(self.waiting, self.done, self.slots, self.slots - len(self.running)):
            since = time.monotonic()
            # First: the end of what could not be started would be waited for in vain.
            self.launch(stage, self._work(stage), lambda end, stage=stage: self.ended.put((stage, end)))
            del self.waiting[stage.address]
            self.running[stage.address] = Running(since)

    def _work(self, stage: Stage) -> Work:
        def is_bar(line: str) -> bool:
            return self._read(stage.address, line)

        return lambda tell: work.bring(stage, self.environment, is_bar, tell, self.stop)

    def _read(self, address: str, line: str) -> bool:
        """Takes the progress from a line that a stage prints; returns whether there is any in it."""
        found, stage = BAR.search(line), self.running.get(address)
        if found and stage:
            percent, hours, minutes, seconds = (int(number or 0) for number in found.groups())
            moves = found[4] and percent < 100
            stage.percent = percent
            stage.ends = time.monotonic() + 3600 * hours + 60 * minutes + seconds if moves else None
        return bool(found)

    def _end(self, stage: Stage, end: End) -> None:
        seconds = time.monotonic() - self.running.pop(stage.address).since
        self.ends[stage.address] = end
        if end.name == "Completed":
            self.estimate.learn(stage.address, seconds)
            estimate.record(stage.address, seconds)


def clock(seconds: float) -> str:
    """A time as minutes and seconds, from an hour on with the hours."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def in_thread(stage: Stage, bring: Work, ended: Callable[[End], None]) -> None:
    """Starts a stage's work in a thread."""

    def run() -> None:
        try:
            end = bring(lambda line: None)
        except Exception as error:  # a full disk; the run must hear of it
            end = End("Crashed", f"{type(error).__name__}: {error}")
        ended(end)

    threading.Thread(target=run, name=stage.address, daemon=True).start()
