"""Does the stage `timing` rank the methods alike whatever else the machine does?

    python -m benchmarks.timing            # after `dvc repro`, on a machine that does nothing else
    python -m benchmarks.timing ROUNDS

Times the trained methods as the stage does: as the machine is, then with one core taken by a busy loop, then with every
core. Each is compared with the first: Kendall's tau of the rankings, the pairs of methods that change places, and how
far the seconds move; beside it the same of plain medians of wall time.
"""

from __future__ import annotations

import itertools
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from scipy.stats import kendalltau

from benchmarks.common import save
from multiscale import timing
from stages.common import settings
from stages.timing import Bench

LOOP = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: sum(range(10**6))"
PLAIN, REDUCED = "median of wall times", "median ratio times the best reference"


@contextmanager
def busy(count: int) -> Iterator[None]:
    """Processes that do nothing but compute, for as long as this one lives."""
    loops = [subprocess.Popen([sys.executable, "-c", LOOP]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def run(bench: Bench, batches: tuple[int, ...], rounds: int, loops: int) -> dict:
    """The figures of one run, and every lap: wall, processor, and the reference's beside it, in seconds."""
    with busy(loops):
        turns = [bench.round(index) for index in range(rounds)]
        machine = bench.machine()
    least = timing.best(turns)
    found: dict = {"busy_loops": loops, **machine, "reference_seconds": least.wall}
    for k, batch in enumerate(batches):
        each = {name: [turn[name][k] for turn in turns] for name in bench.groups}
        reduced = {name: timing.figures(own, least, bench.clock()) for name, own in each.items()}
        found[f"batch {batch}"] = {
            "seconds_per_image": {
                REDUCED: {name: own.seconds / batch for name, own in reduced.items()},
                PLAIN: {name: statistics.median(t.lap.wall for t in own) / batch for name, own in each.items()},
            },
            "spread": {name: own.spread for name, own in reduced.items()},
            "busy_rounds": {name: own.busy for name, own in reduced.items()},
            "laps": {
                name: [[t.lap.wall, t.lap.processor, t.reference.wall, t.reference.processor] for t in own]
                for name, own in each.items()
            },
        }
    return found


def compare(first: dict[str, float], other: dict[str, float]) -> dict:
    """Rankings and seconds of a run against those of the first, and the ratios to the first's of pairs that swapped."""
    moved = {name: other[name] / first[name] for name in first}
    swapped = {
        f"{a}, {b}": first[a] / first[b]
        for a, b in itertools.combinations(first, 2)
        if (first[a] < first[b]) != (other[a] < other[b])
    }
    return {
        "kendall_tau": kendalltau(list(first.values()), list(other.values())).statistic,
        "swapped": swapped,
        "seconds_over_first": {"min": min(moved.values()), "max": max(moved.values()), **moved},
    }


def main(rounds: int | None = None) -> None:
    params = settings.load()
    torch.set_num_threads(params.run.threads)
    batches = (params.timing.batch or params.sample.batch, 1)
    bench = Bench([name for name, each in params.methods.items() if each.repeat_of is None], batches, params)
    count = rounds or params.timing.rounds
    runs = [run(bench, batches, count, loops) for loops in dict.fromkeys((0, 1, os.cpu_count() or 1))]
    against = {
        f"{other['busy_loops']} busy loops": {
            f"batch {batch}": {
                kind: compare(*(each[f"batch {batch}"]["seconds_per_image"][kind] for each in (runs[0], other)))
                for kind in (REDUCED, PLAIN)
            }
            for batch in batches
        }
        for other in runs[1:]
    }
    save("timing", {"rounds": count, "cores": os.cpu_count(), "against_the_first": against, "runs": runs})


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
