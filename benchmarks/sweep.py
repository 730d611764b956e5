"""What a trial of a sweep costs beside its own work: python -m benchmarks.sweep NAME (a sweep of params/sweeps).

Overhead a trial = (wall time of the sweep * trials at once - seconds in trials) / trials.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from benchmarks.common import save
from flows.sweeps import search
from flows.sweeps.space import load
from flows.sweeps.trial import Pipeline, Records
from stages.common.errors import BadInput
from stages.common.paths import SCRATCH


def main(name: str) -> None:
    plan = load(name)
    records = Records(Path(SCRATCH, "sweeps", f"{name}-{Pipeline.read(plan).key}", "records"))
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
