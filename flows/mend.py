"""Repairs DVC's own files after a kill: DVC writes them in place, and cannot read them if it was interrupted.

python -m flows.mend    # before a plain `dvc repro`; runs of flows do it by themselves

A dvc.lock that is truncated, or too damaged for DVC to read, is replaced by the last intact one, and later results come
from DVC's run cache.
A truncated table of locks is removed, and so are the entries of processes that are gone.
"""

from __future__ import annotations

import argparse

from stages.common.harness import launch

if __name__ == "__main__":  # first: the imports below take seconds
    parser = argparse.ArgumentParser(
        prog="python -m flows.mend", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.parse_args()
    launch("flows.mend", "loading DVC")

import json
import logging
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import psutil
from dvc.dvcfile import PROJECT_FILE
from dvc.exceptions import DvcException
from dvc.lock import LockError, make_lock
from dvc.repo import Repo, lock_repo
from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK, SCHEMA, RWLockFileCorruptedError
from dvc.schema import COMPILED_LOCKFILE_SCHEMA
from dvc.scm import SCMError
from ruamel.yaml import YAML
from voluptuous import Invalid

from multiscale.core.temporary import write_whole
from stages.common import lockfile, orphans
from stages.common.errors import BadInput, one_line
from stages.common.harness import tell

logging.getLogger("dvc").setLevel(logging.CRITICAL)  # no bars of its own in the terminal; its errors are raised

PAUSES = (1.0, 2.0, 4.0)  # seconds before another try where DVC is in the way of itself

Given = ParamSpec("Given")
Found = TypeVar("Found")


@contextmanager
def project() -> Iterator[Repo]:
    """The DVC repository of the working directory, locked and mended. What DVC finds wrong with it becomes BadInput."""
    try:
        with Repo(_wait_for_lock=True) as repo, lock_repo(repo):
            _mend(repo)
            yield repo
    except SCMError as error:
        raise without_git(error) from error
    except DvcException as error:
        raise BadInput(one_line(f"{PROJECT_FILE}: {error}")) from error


def without_git(error: SCMError) -> BadInput:
    """The error for a folder in which git cannot work."""
    return BadInput(f"{error}, and DVC needs one; clone the project with git, or run git init and commit its files")


def patient(ask: Callable[Given, Found]) -> Callable[Given, Found]:
    """Asks once more where another DVC process is in the way: after a kill its processes take a moment to end."""

    @wraps(ask)
    def asked(*given: Given.args, **named: Given.kwargs) -> Found:
        for pause in PAUSES:
            try:
                return ask(*given, **named)
            except BadInput as error:
                if not isinstance(error.__cause__, LockError | RWLockFileCorruptedError):
                    raise
                time.sleep(pause * random.uniform(1, 1.5))
        return ask(*given, **named)

    return asked


@patient
def run() -> None:
    """Mends the project of the working directory."""
    with project():
        pass


def _mend(repo: Repo) -> None:
    """Mends a repository whose lock is held: nobody else writes dvc.lock."""
    fault = _fault(lockfile.read(lockfile.LOCK)) if lockfile.LOCK.exists() else None
    if not fault:
        lockfile.keep()
    elif whole := next(filter(_fits, (lockfile.read(lockfile.KEPT), lockfile.committed())), None):
        write_whole(lockfile.LOCK, whole)
        tell("dvc.lock", f"{fault}; the last whole one is put back")
    else:
        lockfile.LOCK.unlink()
        tell("dvc.lock", f"{fault}; removed, its stages come from DVC's cache")
    hardlink = repo.config["core"].get("hardlink_lock", False)
    with make_lock(str(Path(repo.tmp_dir, RWLOCK_LOCK)), tmp_dir=repo.tmp_dir, hardlink_lock=hardlink):
        _sweep(Path(repo.tmp_dir, RWLOCK_FILE))


def _fault(text: str) -> str | None:
    """What is wrong with a lock; the one that is kept is whole."""
    if text and text == lockfile.read(lockfile.KEPT):
        return None
    if lockfile.is_cut(text) and lockfile.NO_TEXT not in text:
        return "a kill has cut it short"
    return None if _fits(text) else "damaged"


def _fits(text: str) -> bool:
    """Whether a lock is whole and as DVC writes it; a bit that has flipped in a key makes DVC refuse all of it."""
    if not lockfile.addresses(text):
        return False
    try:
        COMPILED_LOCKFILE_SCHEMA(YAML(typ="safe").load(text))
    except Invalid:
        return False
    return True


def _sweep(table: Path) -> None:
    """Removes entries of processes that are gone from DVC's table of locks, and a table that cannot be read."""
    if not table.exists():
        return
    try:
        locks = SCHEMA(json.loads(table.read_text()))
    except (ValueError, Invalid):
        table.unlink()
        tell(str(table), "a kill has cut it short; removed")
        return
    readers = {path: [entry for entry in entries if at_work(entry)] for path, entries in locks["read"].items()}
    writers = {path: entry for path, entry in locks["write"].items() if at_work(entry)}
    left = {"read": {path: entries for path, entries in readers.items() if entries}, "write": writers}
    if left != locks:
        write_whole(table, json.dumps(left))
        tell(str(table), "the locks of processes that are gone are removed")


def at_work(entry: dict[str, Any]) -> bool:
    """Whether the process of an entry is there and is the one that made it: numbers are used again.

    The system may know its script or module in another form: dvc/__main__.py as dvc, flows/reproduce.py as
    flows.reproduce.
    """
    script, *arguments = entry["cmd"].split() or [""]
    names = Path(script).stem, Path(script).parent.name
    try:
        process = psutil.Process(entry["pid"])
        given = " ".join(process.cmdline()).split()
        before = given[: len(given) - len(arguments)]
        is_same = given[len(before) :] == arguments and any(name in word for name in names for word in before)
        return orphans.is_alive(process) and is_same
    except (psutil.NoSuchProcess, ValueError):  # ValueError: of a number below zero
        return False
    except psutil.AccessDenied:
        return True
