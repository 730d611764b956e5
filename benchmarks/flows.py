"""What the flow costs beside `dvc repro`, how near it comes to the critical path, and 50 stages at once.

    python -m benchmarks.flows            # the overhead, the critical path, the contention: ten minutes
    python -m benchmarks.flows whole      # the whole pipeline at a quarter of its budgets: `dvc repro`, then the flow

The overhead is taken on this project, which must be up to date; the rest on pipelines that sleep, in temporary folders.
The whole pipeline runs in two fresh clones of what is committed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common import ROOT, in_turn, save
from flows.dashboard import prefect_server
from stages.common.reading import read_yaml

PORT = 4290
METHODS = 8
SECONDS = {"download": 10.0, "train": 40.0, "sample": 20.0, "report": 10.0}
SHORT = 50
QUARTER = 4


def call(*command: str, folder: Path | str = ".") -> str:
    """The output of a command; one that fails ends the benchmark and says why."""
    done = subprocess.run(command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"error: {' '.join(command)} ended with exit code {done.returncode}\n{done.stdout[-2000:]}")
    return done.stdout


def flow(folder: Path | str = ".", slots: int = 2) -> str:
    return call(sys.executable, "-m", "flows.reproduce", "--slots", str(slots), folder=folder)


@contextmanager
def pipeline(stages: dict) -> Iterator[Path]:
    """A git and DVC project of these stages."""
    with tempfile.TemporaryDirectory() as name:
        call("git", "init", "-q", folder=name)
        call("dvc", "init", "-q", folder=name)
        call("dvc", "config", "core.check_update", "false", folder=name)
        Path(name, "dvc.yaml").write_text(json.dumps({"stages": stages}, indent=1))
        yield Path(name)


def stage(name: str, kind: str, *needs: str) -> dict:
    command = f"sleep {SECONDS[kind]} && echo {name} > {name}"
    return {name: {"cmd": command, "deps": list(needs), "outs": [name]}}


def sleeping() -> dict:
    """A pipeline in the shape of this one: a root, a chain for each method, a report on all."""
    stages = stage("download", "download")
    for number in range(METHODS):
        stages |= stage(f"train{number}", "train", "download") | stage(f"sample{number}", "sample", f"train{number}")
    return stages | stage("report", "report", *(f"sample{number}" for number in range(METHODS)))


def ideal(slots: int) -> float:
    """Seconds of that pipeline without any overhead: the critical path, or the work of all methods on the slots."""
    chain = SECONDS["train"] + SECONDS["sample"]
    return SECONDS["download"] + max(chain, METHODS * chain / slots) + SECONDS["report"]


def critical_path() -> dict:
    result = {}
    for slots in (2, 4, 8):
        with pipeline(sleeping()) as folder:
            started = time.perf_counter()
            flow(folder, slots)
            seconds = time.perf_counter() - started
        result[slots] = {"seconds": seconds, "ideal": ideal(slots), "ratio": seconds / ideal(slots)}
    return result


def contention() -> dict:
    stages = {f"s{n}": {"cmd": f"sleep 0.2 && echo {n} > s{n}", "outs": [f"s{n}"]} for n in range(SHORT)}
    with pipeline(stages) as folder:
        started = time.perf_counter()
        message = flow(folder, 8)
        return {
            "seconds": time.perf_counter() - started,
            "slots": 8,
            "ran": int(re.search(r"(\d+) stages ran", message)[1]),
            "in_lock": len(re.findall(r"^  s\d+:$", (folder / "dvc.lock").read_text(), re.MULTILINE)),
            "retries": sum(log.read_text().count("once more, ") for log in folder.glob(".scratch/logs/*.log")),
            "status": call("dvc", "status", folder=folder).strip(),
        }


def overhead() -> dict:
    if "up to date" not in (status := call("dvc", "status")):
        sys.exit(f"error: the pipeline is not up to date; run `dvc repro` first, or leave this out\n{status[:300]}")
    alone = ("env", "-u", "PREFECT_API_URL", sys.executable, "-m", "flows.reproduce", "--slots", "2")  # as `make repro`
    runs = {"dvc repro": lambda: call("dvc", "repro"), "flow": flow, "flow without a server": lambda: call(*alone)}
    seconds = in_turn(runs, repeats=7, warmup=1)
    middle = {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}
    return {"seconds": seconds, "median": middle, "allowed": 1.5 * middle["dvc repro"] + 3}


def whole() -> dict:
    """Seconds of everything from nothing, one stage at a time and two at a time, each on `run.threads` threads."""
    seconds = {}
    for name, run in {"dvc repro": lambda folder: call("dvc", "repro", folder=folder), "flow": flow}.items():
        with tempfile.TemporaryDirectory() as folder:
            call("git", "clone", "-q", str(ROOT), folder)
            path = Path(folder, "params.yaml")
            experiment = read_yaml(path)
            networks = [*experiment["parts"].values(), *experiment["students"].values()]
            for section in (experiment, experiment["vae"], experiment["classifier"], *networks):
                if "images" in section.get("training", {}):  # else what the section `training` of all says
                    section["training"]["images"] //= QUARTER
            experiment["sample"]["images"] //= QUARTER
            path.write_text(json.dumps(experiment))  # JSON is YAML
            os.environ["PYTHONPATH"] = folder
            started = time.perf_counter()
            run(folder)
            seconds[name] = time.perf_counter() - started
            if "up to date" not in (status := call("dvc", "status", folder=folder)):
                sys.exit(f"error: {name} has left something undone\n{status}")
    return {
        "seconds": seconds,
        "ratio": seconds["flow"] / seconds["dvc repro"],
        "slots": 2,
        "share of images": 1 / QUARTER,
    }


def main(what: str) -> None:
    os.environ["PYTHONPATH"] = str(ROOT)
    with tempfile.TemporaryDirectory() as home:
        os.environ["PREFECT_HOME"] = home
        with prefect_server(PORT, "admin:benchmark") as url:
            os.environ |= {"PREFECT_API_URL": url, "PREFECT_API_AUTH_STRING": "admin:benchmark"}
            if what == "whole":
                save("flows-whole", whole())
            else:
                found = {"up to date": overhead(), "critical path": critical_path(), "contention": contention()}
                save("flows", found)


if __name__ == "__main__":
    main(*sys.argv[1:] or ("overhead",))
