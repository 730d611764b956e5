"""The pipeline as DVC sees it: the stages that a target needs, what each waits for, which are up to date."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import ParamSpec, TypeVar

import networkx as nx
from dvc.dependency.param import ParamsDependency
from dvc.dvcfile import LOCK_FILE, PROJECT_FILE
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo, lock_repo
from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro
from dvc.rwlock import RWLockFileCorruptedError
from dvc.scm import SCMError
from dvc.stage import Stage as DvcStage
from dvc.utils.serialize import dumps_yaml, load_yaml, parse_yaml_for_update

from flows.mend import PAUSES, mend
from stages import code
from stages.common import lockfile
from stages.common.errors import BadInput, one_line, refuse
from stages.common.paths import CODE

logging.getLogger("dvc").setLevel(logging.CRITICAL)  # no bars of its own in the terminal; its errors are raised

ORDER = Path(".dvc/tmp/dvc.lock.order")

Given = ParamSpec("Given")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Stage:
    """One stage of a plan."""

    address: str
    needs: tuple[str, ...]  # the stages that make what it reads
    current: bool  # it and what it reads are up to date, lists of code aside; otherwise DVC decides after its needs
    awaited: int  # how many stages wait for it
    leads: bool  # the first pictures wait for it: the samples of the first method of the experiment that lacks them


@dataclass(frozen=True)
class Declared:
    """What dvc.yaml says of a stage, and whether its result stands."""

    keys: tuple[str, ...]  # of the experiment that it depends on
    inputs: tuple[Path, ...]  # data and models that it reads
    code: tuple[str, ...]  # the lists of `stages.code` that it depends on
    out: Path  # the first
    current: bool  # the result in the working tree is that of today's settings, inputs and code


@contextmanager
def _project() -> Iterator[Repo]:
    """The DVC repository of the working directory, locked and mended. What DVC finds wrong with it becomes BadInput."""
    try:
        with Repo(_wait_for_lock=True) as repo, lock_repo(repo):
            mend(repo)
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
def mended() -> None:
    """Mends what a kill has left of DVC's files; see `flows.mend`."""
    with _project():
        pass


@patient
def plan(targets: Iterable[str] = ()) -> list[Stage]:
    """The stages that targets need (all by default), in the order of `dvc repro`. Raises BadInput.

    A target is a stage, a group of stages, or the name of a method, which stands for that method's evaluation.
    """
    with _project() as repo:
        whole = get_active_graph(repo.index.graph)  # an edge leads from a stage to one that it needs
        addresses = [_address(target, whole) for target in dict.fromkeys(targets)] or [PROJECT_FILE]
        needed = set(plan_repro(whole, collect_stages(repo, addresses)))
        order = [stage for stage in plan_repro(whole) if stage in needed]  # DVC's order of several targets is by chance
        graph = whole.subgraph(order)
        current: set[DvcStage] = set()
        for stage in order:
            needs = {need for need in graph.successors(stage) if need.addressing != "code"}  # see `_stands`
            if current.issuperset(needs) and _stands(stage):
                current.add(stage)
        samples = [stage for stage in repo.index.stages if is_sample(stage.addressing) and stage in graph]
        first = next((stage for stage in samples if stage not in current), None)
        leading = {first, *nx.descendants(graph, first)} if first else set()
        return [
            Stage(
                stage.addressing,
                tuple(need.addressing for need in graph.successors(stage)),
                stage in current,
                len(nx.ancestors(graph, stage)),
                stage in leading,
            )
            for stage in order
        ]


def is_sample(address: str) -> bool:
    """Whether a stage samples the images of a method, samples/METHOD."""
    return address.startswith("sample@")


def _address(target: str, graph: Iterable[DvcStage]) -> str:
    addresses = [stage.addressing for stage in graph]
    groups = {address.partition("@")[0] for address in addresses}
    methods = sorted(address.removeprefix("evaluate@") for address in addresses if address.startswith("evaluate@"))
    if target in groups or target in addresses:
        return target
    if target in methods:
        return f"evaluate@{target}"
    near = [address for address in addresses if address.partition("@")[0] == target.partition("@")[0]]
    allowed = f"a stage ({', '.join(near or sorted(groups))})" + f" or a method ({', '.join(methods)})" * bool(methods)
    raise refuse(PROJECT_FILE, "target", target, allowed)


@patient
def declared(addresses: Iterable[str]) -> dict[str, Declared]:
    """What DVC knows of those of the addresses that are stages. Raises BadInput."""
    wanted = set(addresses)
    with _project() as repo:
        return {stage.addressing: _declared(stage) for stage in repo.index.stages if stage.addressing in wanted}


def _declared(stage: DvcStage) -> Declared:
    keys = [key for dep in stage.deps if isinstance(dep, ParamsDependency) for key in dep.params]
    inputs = tuple(path for path in _paths(stage) if path.parent != CODE)
    outs = (Path(out.def_path) for out in stage.outs if not out.is_metric)
    return Declared(tuple(keys), inputs, tuple(_lists(stage)), next(outs), _stands(stage))


def _paths(stage: DvcStage) -> list[Path]:
    return [Path(dep.def_path) for dep in stage.deps if not isinstance(dep, ParamsDependency)]


def _lists(stage: DvcStage) -> list[str]:
    return [path.name for path in _paths(stage) if path.parent == CODE]


def _stands(stage: DvcStage) -> bool:
    """Whether a result is that of today's settings, inputs and code; DVC looks at lists, which may be older."""
    return not stage.changed() and all(lockfile.read(CODE / name) == code.listing(name) for name in _lists(stage))


@patient
def locked() -> list[str]:
    """The addresses in dvc.lock, in their order there."""
    with _project() as repo:
        return list(load_yaml(LOCK_FILE, fs=repo.fs).get("stages", {})) if repo.fs.exists(LOCK_FILE) else []


def order_before() -> list[str]:
    """The order of dvc.lock before a run; noted until one is done: what is killed or fails leaves its own order."""
    now = locked()
    try:
        noted = json.loads(lockfile.read(ORDER) or "null")
    except ValueError:  # torn, by a disk that was full or a machine that lost its power
        noted = None
    order = now if noted is None or now[: len(noted)] != noted else noted  # else of another branch
    lockfile.replace(ORDER, json.dumps(order))
    return order


@patient
def restore_order(before: list[str], stages: list[Stage]) -> None:
    """Gives dvc.lock the order of a plain `dvc repro`: what stood there before, then what is new, as planned."""
    now = locked()
    order = dict.fromkeys([*before, *(stage.address for stage in stages), *now])  # the first place of each
    wanted = [address for address in order if address in now]
    if now != wanted:
        with _project():
            lock = parse_yaml_for_update(lockfile.read(lockfile.LOCK), LOCK_FILE)
            lock["stages"] = {address: lock["stages"][address] for address in wanted}
            lockfile.replace(lockfile.LOCK, dumps_yaml(lock))
            lockfile.keep()
