"""What a trial of a sweep costs beside its own work: python -m benchmarks.sweep NAME (a sweep of params/sweeps).

Runs the sweep, or takes its records where it has run, and sets the wall time of the whole against the seconds that the
trials themselves took. Overhead a trial = (wall * trials at once - seconds in trials) / trials.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from benchmarks.common import save
from flows import search
from flows.space import load
from flows.trial import Records
from stages.common.paths import SCRATCH
from stages.common.settings import BadInput


def main(name: str) -> None:
    plan = load(name)
    records = Records(Path(SCRATCH, "sweeps", f"{name}-{plan.digest}", "records"))
    if records.all():
        raise BadInput(f"{records.folder}: the sweep has run; delete the folder to time it anew")
    started = time.perf_counter()
    search.run(name)
    wall = time.perf_counter() - started
    seconds = [record["seconds"] for record in records.all()]
    lanes = min(plan.sweep.concurrency, len(seconds))
    overhead = (wall * lanes - sum(seconds)) / len(seconds)
    save("sweep", {"sweep": name, "at_once": lanes, "wall": wall, "trials": seconds, "overhead_per_trial": overhead})


if __name__ == "__main__":
    main(sys.argv[1])
