"""What the benchmarks share: versions timed in turn in one run, their ratios, and raw figures written to results/."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from multiscale.core.device import default_device, describe

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results"


def in_turn(
    versions: dict[str, Callable[[], object]],
    repeats: int,
    warmup: int = 2,
    before: Callable[[str], object] = lambda name: None,
) -> dict[str, list[float]]:
    """Seconds of each repeat of each version, A B A B ..., so that a drifting machine hits both alike.

    `before` is called with the name of a version before each of its repeats, and not timed.
    """
    for call in versions.values():
        for _ in range(warmup):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in versions}
    for _ in range(repeats):
        for name, call in versions.items():
            before(name)
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> dict[str, float]:
    """How many times faster `fast` is, pair by pair: median, quartiles, least and greatest."""
    pairs = [a / b for a, b in zip(seconds[slow], seconds[fast])]
    low, high = np.percentile(pairs, [25, 75]).tolist()
    return {"median": statistics.median(pairs), "q1": low, "q3": high, "min": min(pairs), "max": max(pairs)}


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """The b of values ~ sizes^b: the slope of a straight line through the logarithms, by least squares."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def apart(code: str) -> dict:
    """What code prints as JSON in its last line, in a process of its own; the working directory may be another."""
    about = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True, env=about)
    return json.loads(done.stdout.splitlines()[-1])


def line(event: dict) -> str:
    """An event as a line of JSON for a file that git keeps: without the folders of this machine."""
    text = json.dumps(event)
    for place, name in ((sys.prefix, "PYTHON"), (str(ROOT), "PROJECT"), (tempfile.gettempdir(), "TMP")):
        text = re.sub(rf"(?<![\w.]){re.escape(place)}(?=/)", name, text)
    return text


def version_of(package: str) -> str | None:
    """The version of a package, None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def save(name: str, result: dict, packages: Sequence[str] = ()) -> None:
    """Writes benchmarks/results/NAME.json with the machine and the versions of `packages`, and prints it."""
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "device": describe(default_device()),
        "processor": next(
            (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
            platform.processor(),
        ),
        "python": platform.python_version(),
        "versions": {package: version_of(package) for package in ("torch", "diffusers", *packages)},
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({**about, **result}, indent=2)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text, flush=True)


def hashing(folder: Path) -> dict[str, float]:
    """Seconds that DVC takes to hash a folder or file below this one, and to see that nothing has changed."""
    quiet = {"DVC_NO_ANALYTICS": "1", "PATH": os.environ["PATH"]}
    found = {}
    for command in ("git init -q", "dvc init -q", f"dvc add -q --no-commit {folder}", "dvc data status"):
        started = time.perf_counter()
        subprocess.run(command.split(), check=True, env=os.environ | quiet, stdout=subprocess.DEVNULL)
        found[command.split()[1]] = time.perf_counter() - started
    return {"hash_seconds": found["add"], "status_seconds": found["data"]}
