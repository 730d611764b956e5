"""How long each kind of stage takes from the start of its interpreter to its first batch: results/start.json.

    python -m benchmarks.start     # two minutes on one core

A stage is run as `dvc repro` runs it, in a new process, and ends where it would begin its first batch: by then it has
imported its code, read the settings, checked and opened its inputs, and built its network. The report has no batches;
it ends where its own code begins. Stages run in turn, in a copy of the outputs of this project, which must be there.
Seconds are those of the wall and of the processor, all threads.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time

from benchmarks import miniature
from benchmarks.common import ROOT, save

REPEATS = 5
TRAINING, SHARDS = "multiscale.training.loop Trainer step", "stages.common.shards progress"
STAGES = {  # what a stage calls at its first batch
    "download": SHARDS,
    "vae": TRAINING,
    "latents 32": SHARDS,
    "decompose wavelet": "stages.decompose progress",
    "train dit": TRAINING,
    "sample dit": "stages.sample progress",
    "evaluate dit": "stages.common.extraction progress",
    "report": "stages.report main",
}
CODE = """
import functools, importlib, json, runpy, sys, time, types
from stages.common import harness

def begun(*about, **more):
    print(json.dumps([time.monotonic(), time.process_time()]), flush=True)
    sys.exit()

def imported(stage):
    made = importlib.import_module(stage)
    module, *owner, name = begins.split()
    setattr(functools.reduce(getattr, owner, sys.modules[module]), name, begun)
    return made

stage, begins = sys.argv.pop(1), sys.argv.pop(1)
harness.importlib = types.SimpleNamespace(import_module=imported)
runpy.run_module(stage, run_name="__main__", alter_sys=True)
"""


def begin(stage: str) -> tuple[float, float]:
    """Seconds of the wall and of the processor to the first batch of a stage, in the working directory."""
    name, *arguments = stage.split()
    command = [sys.executable, "-c", CODE, f"stages.{name}", STAGES[stage], *arguments]
    started = time.monotonic()
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    if done.returncode or not done.stdout:
        sys.exit(f"error: {stage} ended with exit code {done.returncode} before its first batch\n{done.stderr[-2000:]}")
    begun, processor = json.loads(done.stdout.splitlines()[-1])
    return begun - started, processor


def main() -> None:
    found: dict[str, list[tuple[float, float]]] = {stage: [] for stage in STAGES}
    with miniature.folder() as folder:
        shutil.copy(ROOT / "params.yaml", folder)
        for name in ("data", "models", "samples", "reports"):
            shutil.copytree(ROOT / name, folder / name)
        for repeat in range(REPEATS + 1):
            for stage, seconds in found.items():
                made = begin(stage)
                if repeat:  # not the first, which fills the disk cache
                    seconds.append(made)
    rows = {}
    for stage, pairs in found.items():
        seconds = dict(zip(("wall", "processor"), map(list, zip(*pairs))))
        rows[stage] = {"median": {kind: statistics.median(each) for kind, each in seconds.items()}, "seconds": seconds}
    save("start", {"stages": rows})


if __name__ == "__main__":
    main()
