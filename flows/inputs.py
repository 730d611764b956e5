"""What a run is asked for: recipe, overrides, targets, a name. All of it is checked before anything runs."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.repo.experiments.refs import ExpRefInfo
from dvc.repo.experiments.utils import check_ref_format, exp_refs_by_names
from dvc.scm import SCMError
from dvc.utils.cli_parse import to_path_overrides
from dvc.utils.hydra import apply_overrides
from filelock import FileLock, Timeout
from ruamel.yaml.error import YAMLError

from flows import graph
from flows.mend import without_git
from multiscale.core.temporary import remove_left, write_whole
from stages.common.errors import BadInput, one_line, refuse
from stages.common.paths import EXPERIMENT, RECIPES
from stages.common.reading import named, read_bytes, read_yaml

LOCK = Path(".dvc/tmp/flow.lock")  # the system frees it when its holder dies
PASSING = Path(".dvc/tmp/params.passing")  # the experiment without and with the overrides of one run, until its end
SLOTS, OVERRIDES = 1024, 100  # at most
ENDS = 10.0  # seconds that a run has to end after a kill of whoever has started it
EXPERIMENT_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"  # what git, DVC's command line and file systems all take


@contextmanager
def prepared(
    targets: list[str],
    recipe: str | None,
    overrides: list[str],
    experiment: str | None,
    slots: int | None,
    passing: bool = False,
) -> Iterator[list[graph.Stage]]:
    """Writes the recipe and the overrides into the experiment's file and plans the stages; alone in this folder.

    With `passing` the overrides hold for this run alone and are put back at its end, or by the next run where this one
    is killed. Raises BadInput; whatever ends the preparations, the file is as it was before. What somebody else has
    written into it meanwhile stays.
    """
    if slots is not None and not 1 <= slots <= SLOTS:
        raise refuse("reproduce", "slots", slots, f"1 to {SLOTS} stages at once")
    if len(overrides) > OVERRIDES:
        raise refuse("reproduce", "overrides", len(overrides), f"up to {OVERRIDES}; a recipe holds any number")
    if recipe and recipe not in named(RECIPES):
        raise refuse(RECIPES, "recipe", recipe, f"one of {', '.join(named(RECIPES))}")
    if experiment:
        _check_name(experiment)
    with alone():
        before = ours = _written()
        try:
            if recipe:
                ours = _switched(recipe)
                write_whole(EXPERIMENT, ours)
            kept = ours
            if overrides:
                ours = _overridden(overrides)
                if passing:
                    write_whole(PASSING, json.dumps([text.decode("latin-1") for text in (kept, ours)]))
                write_whole(EXPERIMENT, ours)
            if EXPERIMENT.exists():
                read_yaml(EXPERIMENT)  # DVC would read whatever stands there, however long that takes
            stages = graph.plan(targets)
        except BaseException:
            _put_back(before, ours)
            PASSING.unlink(missing_ok=True)
            raise
        if recipe:
            _remove_leftovers()
        try:
            yield stages
        finally:
            if passing:
                _put_back(kept, ours)
                PASSING.unlink(missing_ok=True)


def _written() -> bytes:
    """What stands in the experiment's file; nothing where there is none."""
    return read_bytes(EXPERIMENT) if EXPERIMENT.exists() else b""


def _put_back(before: bytes, ours: bytes) -> None:
    """Writes what stood in the experiment's file before, unless it no longer holds what we have written."""
    if before and before != ours and _written() == ours:
        write_whole(EXPERIMENT, before)


@contextmanager
def alone() -> Iterator[None]:
    """One run or sweep in a folder at a time: the next would change settings and results under the first."""
    if not LOCK.parents[1].is_dir():
        raise BadInput(f"{Path.cwd()}: not a DVC project; allowed: the folder that holds .dvc")
    LOCK.parent.mkdir(exist_ok=True)  # a fresh clone has none
    try:
        lock = FileLock(LOCK, timeout=ENDS).acquire()
    except Timeout:
        raise BadInput(f"{Path.cwd()}: another run is at work here; allowed: one at a time") from None
    with lock:
        if PASSING.exists():
            _put_back(*(text.encode("latin-1") for text in json.loads(PASSING.read_text())))
            PASSING.unlink()
        yield


def _switched(name: str) -> bytes:
    """The text of a recipe, if nobody's edits are lost with it."""
    from stages import recipe  # knows every method, and so torch, which takes seconds
    from stages.schema.rendering import render

    return render(recipe.checked(name)).encode()


def _remove_leftovers() -> None:
    """Deletes the outputs of another recipe, now that nothing refuses this one."""
    from stages import recipe
    from stages.common import settings

    recipe.remove_leftovers(settings.load())


def _overridden(overrides: list[str]) -> bytes:
    """The experiment with `KEY=VALUE` settings, as `dvc exp run -S` would write them, if it is valid with them."""
    from stages.common import settings  # knows every method, and so torch, which takes seconds

    by_file = to_path_overrides(overrides)
    for file in by_file:
        if file != str(EXPERIMENT):
            raise refuse("-S", "file", file, f"KEY=VALUE, of {EXPERIMENT}")
    remove_left(EXPERIMENT.parent)
    with TemporaryDirectory(dir=EXPERIMENT.parent, prefix=".-S-", suffix=f".{os.getpid()}.tmp") as folder:
        copy = Path(shutil.copy(EXPERIMENT, folder))
        for override in (text for texts in by_file.values() for text in texts):
            key, sign, value = override.partition("=")
            if not (key and sign):
                raise refuse("-S", "override", override, "KEY=VALUE")
            if "${" in override.replace("\\", ""):  # it may stand for a password of the environment
                raise refuse("-S", key, value, f"a plain value: what it stands for would be written into {EXPERIMENT}")
            tree = read_yaml(copy)
            try:
                apply_overrides(copy, [override])
            except (DvcException, YAMLError, ValueError) as error:  # ValueError: of an integer of 5,000 digits
                raise _not_applied(key, value, tree, error) from error
        settings.validate(read_yaml(copy), EXPERIMENT)
        return copy.read_bytes()


def _not_applied(key: str, value: str, tree: object, error: Exception) -> BadInput:
    """The error for an override that DVC does not apply: its key is not in the file, or its value is none of YAML."""
    from multiscale.core.settings import meant

    for step in key.lstrip("+~").split("."):
        tree = {str(index): entry for index, entry in enumerate(tree)} if isinstance(tree, list) else tree
        if not isinstance(tree, dict) or step not in tree:
            near = meant(step, tree if isinstance(tree, dict) else ())
            return BadInput(f"{EXPERIMENT}: {key}: not in the file{near}; +{key}={value} adds a key that is left out")
        tree = tree[step]
    return refuse(EXPERIMENT, key, value, f"a value of YAML ({str(error.__cause__ or error).splitlines()[0]})")


def _check_name(experiment: str) -> None:
    """An experiment's name must be one for git and new on this commit; DVC would say so only when all is done."""
    if not re.fullmatch(EXPERIMENT_NAME, experiment) or experiment == "HEAD":
        raise refuse("experiment", "name", experiment, "up to 100 letters, digits, '.', '_' and '-', the first no sign")
    try:
        with Repo() as repo:
            baseline = repo.experiments.scm.get_rev()
            check_ref_format(repo.scm, ExpRefInfo(baseline, experiment))
            taken = exp_refs_by_names(repo.scm, {experiment}).get(experiment, [])
    except SCMError as error:
        raise without_git(error) from error
    except DvcException as error:
        raise refuse("experiment", "name", experiment, one_line(error)) from error
    if any(ref.baseline_sha == baseline for ref in taken):
        raise refuse("experiment", "name", experiment, "a name that no experiment on this commit has")
