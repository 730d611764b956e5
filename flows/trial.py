"""One trial of a sweep: trains what its settings ask for, samples, evaluates, by the code of the stages themselves.

A trial works in a folder of its own that links to what the pipeline has made. What trials have in common (a part with
equal settings, a decomposition) is made once, by the first that needs it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.space import Plan
from multiscale.core.storage import read_json, write_json
from stages import decompose, distill, evaluate, fitting, latents, sample, train
from stages.common import keys, paths, settings

GIVEN = (paths.IMAGES, paths.REFERENCE, paths.VAE, paths.CLASSIFIER)  # what every trial takes from the pipeline
OnRow = Callable[[str, int, dict[str, float]], None]  # (part, images of the parts before it, history row)


@dataclass(frozen=True)
class Pipeline:
    """What DVC knows of the stages that trials run: asked once, since each trial would take a second to import DVC."""

    code: dict[str, list[Path]]  # the files of each stage's code
    made: dict[str, dict[str, Any]]  # the settings of each stage whose result is that of today's code and inputs

    @classmethod
    def read(cls, plan: Plan) -> Pipeline:
        """From the project in the working directory. Raises BadInput."""
        from flows import graph

        found = graph.recorded(plan.stages)
        made = {address: stage.params for address, stage in found.items() if stage.params is not None}
        return cls({address: stage.code for address, stage in found.items()}, made)

    def code_of(self, stage: str) -> list[Path]:
        """The files of a stage's code; of one that only a trial has, those of its group: they differ in settings."""
        group = (files for address, files in self.code.items() if address.partition("@")[0] == stage.partition("@")[0])
        return self.code.get(stage) or next(group)


def key(plan: Plan, pipeline: Pipeline) -> str:
    """Of all that the trials of a sweep depend on. Raises BadInput where the pipeline lacks what they start from."""
    code = {file for stage in plan.stages for file in pipeline.code_of(stage)}
    return keys.key(plan.settings, GIVEN, code)


def run(
    method: str, tree: dict[str, Any], project: Path, scratch: Path, pipeline: Pipeline, on_row: OnRow
) -> dict[str, Any]:
    """Runs the experiment `tree` (a method, after its teacher) in a folder below `scratch`; gives metrics and history.

    Raises what a stage raises. A trial that was killed goes on from its checkpoints when it is run again.
    """
    text = json.dumps(tree, indent=1, sort_keys=True)
    folder = scratch / "work" / hashlib.sha256(text.encode()).hexdigest()[:16]
    for path in (*GIVEN, *map(Path, _outside(tree))):
        _link(folder / path, project / path)
    (folder / settings.EXPERIMENT).parent.mkdir(parents=True, exist_ok=True)
    (folder / settings.EXPERIMENT).write_text(text)  # JSON is YAML
    os.chdir(folder)
    params = settings.load("seed", "run", "data", "vae", "latents", "decompose", "parts", "students", "methods")
    trained = Trained(project, scratch / "made", pipeline)
    for name in params.decompose:
        trained.decomposition(name, params)
    before, history = 0, []
    for student in params.students.values():
        for part in params.methods[student.teacher].parts:
            trained.part(part, params, lambda row: None)
    for part in params.methods[method].parts:
        trained.part(part, params, lambda row, part=part, before=before: on_row(part, before, row))
        before += (params.students | params.parts)[part].training.images
        lines = (paths.MODELS / method / part / "history.jsonl").read_text().splitlines()
        history += [{"part": part, "images": row["images"], "loss": row.get("loss")} for row in map(json.loads, lines)]
    sample.main(method)
    evaluate.main(method)
    quality, cost = read_json(paths.METRICS / f"{method}.json"), read_json(paths.TIMINGS / f"sample-{method}.json")
    numbers = {key: value for key, value in {**cost, **quality}.items() if isinstance(value, int | float)}
    os.chdir(project)
    shutil.rmtree(folder)
    return {"metrics": numbers, "protocol": quality["protocol"], "history": history}


def _outside(tree: dict[str, Any]) -> list[str]:
    """Files of the user's that the settings name by a relative path."""
    weights = tree["evaluate"]["weights"]
    return [weights] if weights and not Path(weights).is_absolute() else []


def _link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


class Trained:
    """What trials share: the project's own results where they fit, else what an earlier trial has made."""

    def __init__(self, project: Path, made: Path, pipeline: Pipeline):
        self.project, self.made, self.pipeline = project, made, pipeline

    def latents(self, side: int, params) -> Path:
        """data/latents/SIDE, encoded with the project's autoencoder."""
        path, stage, section = paths.LATENTS / str(side), f"latents@{side}", params.latents
        tracked = {"data.channels": params.data.channels}
        tracked |= {"latents.batch": section.batch, "latents.precision": section.precision}
        inputs = [paths.IMAGES, paths.VAE]
        if not self._take(stage, tracked, inputs, path):
            self._once(path, keys.key(tracked, inputs, self.pipeline.code_of(stage)), lambda: latents.main(str(side)))
        return path

    def decomposition(self, name: str, params) -> None:
        """data/decomposed/NAME, after the latents that it reads."""
        path, stage, section = paths.DECOMPOSED / name, f"decompose@{name}", params.decompose[name]
        inputs = [paths.IMAGES]
        if section.reads == "latents":
            inputs = [self.latents(side, params) for side in section.sides if side in params.latents.sides]
        tracked = {f"decompose.{name}": section.model_dump()}
        if not self._take(stage, tracked, inputs, path):
            self._once(path, keys.key(tracked, inputs, self.pipeline.code_of(stage)), lambda: decompose.main(name))

    def part(self, name: str, params, on_row: Callable[[dict[str, float]], None]) -> None:
        """models/METHOD/NAME, reused wherever everything that decides its weights is equal."""
        student = name in params.students
        module, verb, kind = (distill, "distill", "students") if student else (train, "train", "parts")
        section, stage = getattr(params, kind)[name], f"{verb}@{name}"
        path, inputs = paths.MODELS / section.method / name, [paths.DECOMPOSED / section.reads]
        tracked = {"seed": params.seed, f"{kind}.{name}": section.model_dump()}
        if student:
            tracked |= {"data.channels": params.data.channels, "latents.precision": params.latents.precision}
            inputs += (paths.MODELS / section.teacher).iterdir()
        if not self._take(stage, tracked, inputs, path):
            job = module.job(name, params, self.pipeline.code_of(stage))
            self._once(path, job.key, lambda: fitting.work(job, lambda seen: None, [on_row]))

    def _take(self, stage: str, tracked: dict[str, Any], inputs: Sequence[Path], path: Path) -> bool:
        """Links to the pipeline's result of a stage if it has these settings, and the trial the pipeline's inputs."""
        same = self.pipeline.made.get(stage) == tracked
        fits = same and all(each.readlink() == self.project / each for each in inputs)
        if fits:
            _link(path, self.project / path)
        return fits

    def _once(self, path: Path, key: str, make: Callable[[], None]) -> None:
        """Makes `path`, or waits for the trial that is making it; a link is left in its place."""
        place = self.made / f"{path.name}-{key}"
        place.parent.mkdir(parents=True, exist_ok=True)
        with _alone(place.with_suffix(".lock")):
            if not place.exists():
                make()
                os.replace(path, place)
        _link(path, place)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Holds a lock that the system drops when the process dies."""
    with open(lock, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Records:
    """The finished trials of a sweep, one file each: what a killed sweep goes on from."""

    def __init__(self, folder: Path):
        self.folder = folder

    def path(self, point: dict[str, Any]) -> Path:
        """Where a point's record stands."""
        return self.folder / f"{hashlib.sha256(json.dumps(point, sort_keys=True).encode()).hexdigest()[:16]}.json"

    def add(self, point: dict[str, Any], state: str, **about: Any) -> None:
        """Keeps the outcome of a trial: 'done', 'stopped' or 'failed'. The first word on a trial stays."""
        if not self.path(point).exists():
            write_json(self.path(point), {"point": point, "state": state, **about})

    def all(self) -> list[dict[str, Any]]:
        """Every record, the oldest first."""
        return [
            read_json(path) for path in sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        ]
