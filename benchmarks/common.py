"""What the benchmarks share: two versions timed in turn in one run, and raw figures written beside the scripts."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from multiscale.core.device import default_device, describe

RESULTS = Path(__file__).parent / "results"


def in_turn(versions: dict[str, Callable[[], None]], repeats: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of each repeat of each version, A B A B ..., so that a drifting machine hits both alike."""
    for call in versions.values():
        for _ in range(warmup):
            call()
    seconds: dict[str, list[float]] = {name: [] for name in versions}
    for _ in range(repeats):
        for name, call in versions.items():
            started = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> dict[str, float]:
    """How many times faster `fast` is, pair by pair: median, least and greatest."""
    pairs = [a / b for a, b in zip(seconds[slow], seconds[fast])]
    return {"median": statistics.median(pairs), "min": min(pairs), "max": max(pairs)}


def save(name: str, result: dict) -> None:
    """Writes benchmarks/results/NAME.json with the machine and the versions, and prints it."""
    about = {
        "device": describe(default_device()),
        "processor": next(
            (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")),
            platform.processor(),
        ),
        "python": platform.python_version(),
        "versions": {package: importlib.metadata.version(package) for package in ("torch", "diffusers")},
    }
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({**about, **result}, indent=2)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)
