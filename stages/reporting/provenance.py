"""Where the numbers of the page come from: versions, hardware, and what makes each row again."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from multiscale.core.storage import sha256_of
from stages.common.paths import SAMPLES
from stages.reporting.rows import Row, methods_of
from stages.schema import Experiment

PACKAGES = ("torch", "diffusers", "torch-fidelity", "numpy", "scipy", "polars", "dvc", "prefect", "ray")


def versions() -> dict[str, str]:
    """The versions of Python, the packages that decide results, and the commit of the code."""
    found = {"Python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found | {"code": _commit()}


def _commit() -> str:
    """The commit that is checked out, and whether files differ from it."""
    try:
        made = [
            subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "--short=12", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return "not in git"
    return f"git {made[0]}" + (", with changes" if made[1] else "")


def hardware(sampling: Mapping[str, Any]) -> dict[str, str]:
    """The machine that wrote the page, and the device that sampling was timed on."""
    return {
        "sampling timed on": str(sampling.get("device", "not timed here")),
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def commands(rows: Sequence[Row], params: Experiment) -> list[list[str]]:
    """Of each training of each row: its name, the command that makes it, the file of its images, and its SHA-256."""
    found = []
    for row in rows:
        stage = "floor" if row["kind"] == "floor" else "evaluate"
        for name in methods_of(row["method"], params):
            file = SAMPLES / name / "images.safetensors"
            found.append([name, f"dvc repro {stage}@{name}", file.as_posix(), sha256_of(file)[:16]])
    return found
