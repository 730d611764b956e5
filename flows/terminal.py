"""The run in the terminal: one line that is kept up to date, and above it the paths of pictures and what has failed.

Where stderr is no terminal, a plain line tells of each stage that ends and, when none does for a while, how far the run
is. A log holds these plain lines in any case.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from tqdm import tqdm

from flows.graph import Stage, is_sample
from flows.previews import Previews
from flows.scheduler import BAR, Scheduler, clock
from flows.work import LOGS, log_of
from stages.common.paths import SAMPLES

LOG = LOGS / "run.log"
EVERY = 30.0  # seconds without a plain line before one tells how far the run is
TAIL = 15  # lines that are shown of the log of a stage that failed


class Terminal:
    """Shows a run on stderr."""

    def __init__(self, stages: list[Stage]):
        stale = sum(not stage.current for stage in stages)
        LOG.parent.mkdir(parents=True, exist_ok=True)
        self.log = Path(LOG if stale else os.devnull).open("w", buffering=1)  # a run of nothing leaves the last log
        screen = sys.stderr.isatty() and all(os.get_terminal_size(sys.stderr.fileno()))  # some have no lines
        self.bar = tqdm(bar_format="{desc}", dynamic_ncols=True, leave=False) if screen else None
        self.since = time.monotonic()
        self.due = self.since + EVERY
        self.pictures, self.previews, self.previewed = 0, Previews(), False
        self.intro = f"{stale} of {len(stages)} stages to run" if stale else ""

    def say(self, line: str) -> None:
        """Tells a line that stays."""
        print(line, file=self.log)
        tqdm.write(line, file=sys.stderr)  # above the line that is drawn over itself

    def look(self, run: Scheduler) -> None:
        """Draws the line again, and tells it now and then."""
        if self.intro:
            self.say(f"{self.intro}, {run.slots} at once; log: {LOG}, of each stage: {LOGS}/STAGE.log")
            self.intro = ""
        if not self.previewed and (fresh := self.previews.fresh(run.running)):
            self.say(f"what {fresh[0].parent.name} has learnt so far: {fresh[0]}, redrawn at each tenth of a training")
            self.previewed = True
        if self.bar is not None:
            self.bar.set_description_str(status(run, time.monotonic()))
        if time.monotonic() > self.due:
            self._plain(run)

    def close(self, run: Scheduler) -> None:
        """Removes the line."""
        if self.bar is not None:
            self.bar.close()

    def ended(self, run: Scheduler, stage: Stage) -> None:
        """Tells that a stage has ended: of one that failed the end of its log, of samples where they are."""
        if stage.current:
            return
        end = run.ends[stage.address]
        self._plain(run, f" | {stage.address} {end.name.lower()}")
        if end.name in ("Failed", "Crashed"):
            log = log_of(stage.address)
            lines = [line for line in log.read_text().splitlines() if not BAR.search(line)] if log.exists() else []
            self.say("\n    ".join([f"{stage.address} failed. The end of {log}:", *lines[-TAIL:]]))
        grid = SAMPLES / stage.address.partition("@")[2] / "grid.png"
        if end.good and is_sample(stage.address) and grid.exists():
            self.say(f"{'images' if self.pictures else 'first images'}: {grid}")
            self.pictures += 1

    def end(self, message: str, failed: bool) -> None:
        """Tells how the run has ended."""
        print(message, file=self.log)
        print(message, file=sys.stderr if failed else sys.stdout)

    def _plain(self, run: Scheduler, news: str = "") -> None:
        now = time.monotonic()
        line = f"{clock(now - self.since)} | {status(run, now)}{news}"
        print(line, file=self.log)
        if self.bar is None:
            print(line, file=sys.stderr, flush=True)
        self.due = now + EVERY


def status(run: Scheduler, now: float) -> str:
    """How far a run is: stages done, time left in all; of each stage that runs the share that is done and time left."""
    left = f", {_about(run.left(now))} left" if run.running or run.waiting else ""
    running = [_progress(address, run, now) for address in run.running]
    return " | ".join([f"{len(run.done)}/{len(run.stages)} stages{left}", *running])


def _about(seconds: float | None) -> str:
    if seconds is None:
        return "unknown time"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else "less than 1 min"


def _progress(address: str, run: Scheduler, now: float) -> str:
    percent, left = run.progress(address, now)
    if left is None:
        return f"{address} for {clock(now - run.running[address].since)}"
    return f"{address} {percent}% {clock(left)}" if left >= 1 else f"{address} ending"
