"""One trial of a sweep: trains what its settings ask for, samples, evaluates, by the code of the stages themselves.

A trial works in a folder of its own that links to the pipeline's results. Of each stage dvc.yaml says what its result
depends on; whatever is equal to the pipeline's is linked, anything else is made once, by the first trial that needs it.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from flows import graph
from flows.sweeps.space import Plan, Point, at
from multiscale.core.intact import Damaged
from multiscale.core.settings import Fetched
from multiscale.core.storage import read_json, read_sealed_json, write_sealed_json
from stages import evaluate, sample, timing
from stages.common import fitting, keys, paths
from stages.schema import Experiment

GIVEN = (paths.IMAGES, paths.PIXELS, paths.REFERENCE, paths.VAE, paths.CLASSIFIER)  # see `given`
Row = Callable[[dict[str, float]], None]  # told each row of a history
OnRow = Callable[[int, dict[str, float]], None]  # the same, after the images of the parts before


def stages_of(params: Experiment) -> list[str]:
    """The stages whose results a trial needs before it samples, each after those that it reads."""
    latents = [section for section in params.decompose.values() if section.source == "latents"]
    needed = {resolution for section in latents for resolution in at(section, "resolutions")}
    return [
        *(f"latents@{resolution}" for resolution in params.latents.resolutions if resolution in needed),
        *(f"decompose@{name}" for name in params.decompose),
        *(f"train@{name}" for name in params.parts),
        *(f"synthetic@{name}" for name in params.synthetic),
        *(f"distill@{name}" for name in params.students),
    ]


def given(params: Experiment) -> list[Path]:
    """What every trial takes from the pipeline; with text also the captions and prompts, which decompositions read."""
    return [*GIVEN, *([paths.EMBEDDINGS] if params.text else [])]


@dataclass(frozen=True)
class Pipeline:
    """The project that a sweep starts from, and what DVC knows of the stages that trials run: asked once."""

    folder: Path
    experiment: Experiment
    stages: dict[str, graph.Declared]
    key: str  # of all that the trials of the sweep depend on

    @classmethod
    def read(cls, plan: Plan) -> Pipeline:
        """From the working directory. Raises BadInput, also where the results that trials start from are missing."""
        method, resolutions = plan.sweep.method, plan.experiment.latents.resolutions
        run = [*stages_of(plan.trial({})), f"sample@{method}", f"evaluate@{method}"]
        stages = graph.declared([*run, *(f"latents@{resolution}" for resolution in resolutions)])
        lists = {name for address in run for name in _of(stages, address).code}
        return cls(Path.cwd(), plan.experiment, stages, keys.key(plan.settings, given(plan.experiment), lists))

    def has(self, stage: graph.Declared, params: Experiment) -> bool:
        """Whether the pipeline's result of a stage stands, and has these settings and the inputs here."""
        same = stage.current and all(at(self.experiment, key) == at(params, key) for key in stage.keys)
        return same and all(path.readlink() == self.folder / path for path in _parts(stage))


def _of(stages: dict[str, graph.Declared], address: str) -> graph.Declared:
    """What dvc.yaml says of a stage; of a resolution that only a trial has, what it says of another one."""
    if address in stages:
        return stages[address]
    group, _, name = address.partition("@")
    other = next(stage for known, stage in stages.items() if known.startswith(f"{group}@"))
    return replace(other, out=other.out.with_name(name), current=False)


def _parts(stage: graph.Declared) -> list[Path]:
    """The inputs of a stage; of a folder of results, each result."""
    folders = [path for path in stage.inputs if path.is_dir() and not path.is_symlink()]
    return [path for each in stage.inputs for path in (sorted(each.iterdir()) if each in folders else [each])]


def run(method: str, params: Experiment, pipeline: Pipeline, scratch: Path, on_row: OnRow) -> dict[str, Any]:
    """Runs an experiment of one method, after its teacher, in a folder below `scratch`; gives metrics and history.

    on_row: is told all rows of all parts, also of a part that stands, so that trials are compared at the same images.
    Raises what a stage raises. A trial that was killed goes on from its checkpoints when it is run again.
    """
    folder = scratch / "work" / hashlib.sha256(params.model_dump_json().encode()).hexdigest()[:16]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):  # two points may stand for the same experiment
        return _run(method, params, pipeline, scratch, folder, on_row)


def _run(
    method: str, params: Experiment, pipeline: Pipeline, scratch: Path, folder: Path, on_row: OnRow
) -> dict[str, Any]:
    """`run` in a folder that is its own."""
    section = params.evaluate  # whose paths are absolute, or relative to the project
    weights = [Path(path) for path in (section.weights, section.clip_score, section.pick_score) if path]
    for path in (*given(params), *(path for path in weights if not path.is_absolute())):
        _link(folder / path, pipeline.folder / path)
    os.chdir(folder)
    own, before = params.parts_of(method), 0
    history: list[dict[str, Any]] = []
    for address in stages_of(params):
        verb, _, name = address.partition("@")
        part = own.get(name) if verb in ("train", "distill") and _is_trained(name, params) else None
        tell, told = partial(on_row, before), []
        out = _bring(verb, name, params, pipeline, scratch / "made", [told.append, tell] if part else [])
        if part:
            before += part.training.images
            for row in map(json.loads, (out / "history.jsonl").read_text().splitlines()):
                losses = {key: row.get(key) for key in ("loss", "validation_loss")}
                history.append({"part": name, "images": row["images"], **losses})
                if not told:  # nothing was trained
                    tell(row)
    sample.main(params, method)
    evaluate.main(params, method)
    quality = read_sealed_json(paths.MEASUREMENTS / f"{method}.json")
    cost = read_json(paths.SAMPLES / method / paths.COSTS.name)
    seconds = timing.measure([method], params)["methods"][method]
    numbers = {key: value for key, value in {**cost, **seconds, **quality}.items() if isinstance(value, int | float)}
    os.chdir(pipeline.folder)
    shutil.rmtree(folder)
    return {"metrics": numbers, "protocol": quality["protocol"], "history": history}


def _bring(verb: str, name: str, params: Experiment, pipeline: Pipeline, made: Path, rows: Sequence[Row]) -> Path:
    """Links to the result of a stage in the working directory: the pipeline's, an earlier trial's, or a new one."""
    stage = _of(pipeline.stages, f"{verb}@{name}")
    if pipeline.has(stage, params):
        _link(stage.out, pipeline.folder / stage.out)
        return stage.out
    module, tree = importlib.import_module(f"stages.{verb}"), params.model_dump()
    job = module.job(name, params) if verb in ("train", "distill") and _is_trained(name, params) else None
    settings = {key: at(tree, key) for key in stage.keys}
    place = made / f"{name}-{job.key if job else keys.key(settings, _parts(stage), stage.code)}"
    made.mkdir(parents=True, exist_ok=True)
    with FileLock(place.with_suffix(".lock")):  # another trial may be making it
        if not place.exists():
            if job:
                fitting.work(job, params.run, lambda seen: None, rows, counted=False)
            else:
                module.main(params, name)
            os.replace(stage.out, place)
    _link(stage.out, place)
    return stage.out


def _is_trained(name: str, params: Experiment) -> bool:
    return not isinstance(params.trained[name], Fetched)


def _link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


class Records:
    """The finished trials of a sweep, one file each: what a killed sweep goes on from."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, point: Point) -> Path:
        """The file of a point's record."""
        return self.folder / f"{hashlib.sha256(json.dumps(point, sort_keys=True).encode()).hexdigest()[:16]}.json"

    def of(self, point: Point) -> dict[str, Any] | None:
        """The record of a point, if it has one."""
        path = self.path(point)
        return read_sealed_json(path) if path.exists() else None

    def add(self, point: Point, state: str, **about: Any) -> None:
        """Keeps the outcome of a trial: 'done', 'stopped' or 'failed'. The first word on a trial stays."""
        if not self.path(point).exists():
            write_sealed_json(self.path(point), {"point": point, "state": state, **about})

    def all(self) -> list[dict[str, Any]]:
        """Every record, the oldest first."""
        paths = sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        return [read_sealed_json(path) for path in paths]

    def forget_damaged(self) -> None:
        """Removes each record that is not as it was written, and says so: its trial runs again."""
        for path in self.folder.glob("*.json"):
            try:
                read_sealed_json(path)
            except Damaged as error:
                path.unlink()
                print(f"{error}; its trial runs again", file=sys.stderr)
