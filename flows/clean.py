"""Deletes what nothing refers to: temporary files of killed processes, and files that only older settings would use.

python -m flows.clean    # make clean

It shows each path that it deletes, with its size. It keeps results and, in .scratch, what the next run would use:
downloads and published models that params/ or params.yaml name, the newest checkpoints and records of each training
stage and each sweep, shards of interrupted stages, logs, previews and the seconds of stages. It refuses to run while
something else is at work in this folder.
"""

from __future__ import annotations

import argparse

from stages.common.harness import launch

if __name__ == "__main__":  # first: the imports below take seconds
    parser = argparse.ArgumentParser(
        prog="python -m flows.clean", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    launch("flows.clean", "loading torch, to see what nothing refers to")

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from flows import inputs, mend
from flows.sweeps import SWEEPS
from multiscale.core.temporary import is_left
from stages.common.errors import BadInput
from stages.common.paths import EXPERIMENT, SCRATCH
from stages.common.reading import read_text

GIVEN = Path("data/raw")  # people's own
CACHE = Path(".dvc/cache")  # one elsewhere may be others' too
MADE = ("data", "models", "params", "reports", "samples", str(SCRATCH), ".dvc/tmp")
WORKS = re.compile(r"-m (stages\.|flows\.sweeps|flows\.reproduce)|/dvc (repro|exp|commit|checkout)")


def run() -> None:
    """Frees what nothing refers to in the working directory, and says how much that was."""
    with inputs.alone():
        _check_idle()
        mend.run()
        freed = 0
        for path in unreferenced():
            size = sum(file.lstat().st_size for file in (path, *path.rglob("*")) if file.is_file())
            freed += size
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
            print(f"{size / 1e6:10.1f} MB  {path}")
        print(f"{freed / 1e6:10.1f} MB freed")


def _check_idle() -> None:
    """Raises BadInput where another command works here: what it writes is nobody's until it ends."""
    for process in psutil.process_iter(["pid", "cwd", "cmdline"]):
        line = " ".join(process.info["cmdline"] or ())
        if process.info["cwd"] == str(Path.cwd()) and WORKS.search(line):
            raise BadInput(f"{Path.cwd()}: {line[:80]!r} is at work here ({process.pid}); allowed: when it has ended")


def unreferenced() -> list[Path]:
    """What nothing refers to, each path once and none below another."""
    found = sorted({*_left(), *_of_older_settings()})
    return [path for path in found if not set(path.parents) & set(found)]


def _left() -> Iterator[Path]:
    """What killed processes have left; only while they work does anything know of it."""
    yield from filter(is_left, Path().glob(".*.tmp"))
    for folder in map(Path, MADE):
        yield from (path for path in folder.rglob(".*.tmp") if is_left(path) and GIVEN not in path.parents)
    yield from CACHE.rglob(".*.tmp")  # DVC's own copies in progress; none works here now
    yield from (SCRATCH / "unpacked").glob("*")  # what `download` reads of a tar, until it ends
    yield from (SCRATCH / "ray").glob("*")


def _of_older_settings() -> Iterator[Path]:
    """What a run of today's settings, or of a recipe, would not look for."""
    named = "".join(read_text(path) for path in [EXPERIMENT, *Path("params").rglob("*.yaml")] if path.exists())
    for archive in (SCRATCH / "downloads").glob("*"):
        if archive.name.partition("-")[0] not in named:  # begins with the checksum in data.sha256
            yield archive
    for model in (SCRATCH / "hub").glob("*--*"):  # models--OWNER--NAME
        if model.name.partition("--")[2].replace("--", "/") not in named:
            yield model
    for kind in ("checkpoints", "sweeps"):  # NAME-KEY, where the key stands for all that decides the result
        newest: dict[str, Path] = {}
        for folder in sorted((SCRATCH / kind).glob("*-*"), key=_written):
            name = folder.name.rpartition("-")[0]
            if name in newest:
                yield newest[name]
            newest[name] = folder
            if kind == "sweeps" and not (SWEEPS / f"{name}.yaml").exists():
                yield folder


def _written(folder: Path) -> float:
    """When a folder, or one in it, got or lost its last file: a sweep that goes on writes into those in its own."""
    return max(path.stat().st_mtime for path in (folder, *folder.glob("*")))
