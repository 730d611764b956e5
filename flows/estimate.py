"""How long stages take, which of them go next, and how long all that is left still takes.

Seconds come from the last run of a stage in this folder, else from the table of the recipe (`flows/seconds`): processor
seconds, scaled by how fast the stages of this run are against it.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from flows.graph import Stage, is_sample
from multiscale.core.temporary import write_whole
from stages.common.paths import EXPERIMENT, SCRATCH
from stages.common.reading import read_yaml

RECORD = SCRATCH / "seconds.json"  # stage -> seconds of its last run; `flows/seconds` holds copies of such files
TABLES = Path(__file__).parent / "seconds"  # RECIPE.json, of a quiet machine
SETTLED = 10.0  # seconds after which a stage's own bar is believed
PRIOR = 60.0  # seconds that count as taken as expected: a short stage alone says little of the pace


@dataclass
class Running:
    """A stage that runs; times are those of one monotonic clock, in seconds."""

    since: float
    percent: int = 0  # by its own bar
    ends: float | None = None  # by its own bar, while that moves


class Estimate:
    """The seconds of every stage of a plan: measured here, else known from before, else those of stages like it."""

    def __init__(self, stages: list[Stage], known: Mapping[str, float]):
        self.stages, self.known = stages, dict(known)
        self.took: dict[str, float] = {}  # in this run
        self._measure()

    def _measure(self) -> None:
        self.seconds = {stage.address: 0.0 if stage.current else self._expected(stage.address) for stage in self.stages}
        # The longest chain of stages that starts with each; a plan has each stage after all that it needs.
        self.chain = dict(self.seconds)
        for stage in reversed(self.stages):
            for need in stage.needs:
                self.chain[need] = max(self.chain[need], self.seconds[need] + self.chain[stage.address])

    def _expected(self, address: str) -> float:
        if address in self.known:
            return self.known[address]
        group = address.partition("@")[0]
        alike = [seconds for other, seconds in self.known.items() if other.partition("@")[0] == group]
        return mean(alike or self.known.values() or [1.0])

    def learn(self, address: str, seconds: float) -> None:
        """Notes what a stage took."""
        self.took[address] = seconds
        if address not in self.known:
            self.known[address] = seconds
            self._measure()

    def choose(self, waiting: Mapping[str, Stage], done: Collection[str], slots: int, free: int) -> list[Stage]:
        """The stages to start on the slots that are free.

        First goes a stage whose chain takes longer than an equal share of all that waits, because everything would end
        with it; then what the first pictures wait for, then what makes pictures, then the longest chain.
        """
        share = sum(self.seconds[address] for address in waiting) / slots
        done = set(done)

        def rank(stage: Stage) -> tuple[bool | float, ...]:
            chain = self.chain[stage.address]
            return stage.current, chain > share, stage.leads, is_sample(stage.address), chain, stage.awaited

        ready = [stage for stage in waiting.values() if done.issuperset(stage.needs)]
        return sorted(ready, key=rank, reverse=True)[:free]

    def pace(self, running: Mapping[str, Running], now: float) -> float:
        """How many times as long as expected the stages take, by those that have ended and the bars of the others."""
        took = self.took | {
            address: stage.ends - stage.since
            for address, stage in running.items()
            if stage.ends and now - stage.since > SETTLED
        }
        took = {address: seconds for address, seconds in took.items() if address in self.known}
        return (PRIOR + sum(took.values())) / (PRIOR + sum(self.known[address] for address in took))

    def remaining(self, address: str, running: Mapping[str, Running], now: float) -> float | None:
        """The seconds that a stage still takes: by its own bar, else as expected; None before anything is known."""
        stage = running[address]
        if not (self.known or stage.ends):
            return None
        ends = stage.ends or stage.since + self.pace(running, now) * self.seconds[address]
        return max(0.0, ends - now)

    def left(
        self,
        waiting: Mapping[str, Stage],
        running: Mapping[str, Running],
        done: Collection[str],
        slots: int,
        now: float,
    ) -> float | None:
        """The seconds until everything has ended, by playing the rest of the run; None before anything is known."""
        if not self.known:
            return None
        waiting, done, pace, clock = dict(waiting), set(done), self.pace(running, now), 0.0
        busy = [(self.remaining(address, running, now) or 0.0, address) for address in running]
        heapq.heapify(busy)
        while True:
            for stage in self.choose(waiting, done, slots, slots - len(busy)):
                del waiting[stage.address]
                heapq.heappush(busy, (clock + pace * self.seconds[stage.address], stage.address))
            if not busy:
                return clock
            clock, address = heapq.heappop(busy)
            done.add(address)


def read() -> dict[str, float]:
    """The seconds that are known before a run."""
    recipe = read_yaml(EXPERIMENT).get("recipe") if EXPERIMENT.exists() else None
    return _read(TABLES / f"{recipe}.json") | _read(RECORD)


def _read(path: Path) -> dict[str, float]:
    try:
        found = json.loads(path.read_text())
        return {address: float(seconds) for address, seconds in found.items()}
    except (FileNotFoundError, ValueError, AttributeError, TypeError):  # a torn file is as good as none
        return {}


def record(address: str, seconds: float) -> None:
    """Keeps what a stage took, for the runs to come."""
    RECORD.parent.mkdir(exist_ok=True)
    write_whole(RECORD, json.dumps(_read(RECORD) | {address: round(seconds, 1)}, indent=1) + "\n")
