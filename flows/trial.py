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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from multiscale.core.storage import read_json, write_json
from multiscale.training.checkpoint import digest_files
from stages import decompose, distill, evaluate, fitting, latents, sample, train
from stages.common import paths, settings
from stages.common.errors import BadInput

GIVEN = (paths.IMAGES, paths.REFERENCE, paths.VAE, paths.CLASSIFIER)  # what every trial takes from the pipeline
OnRow = Callable[[str, int, dict[str, float]], None]  # (part, images of the parts before it, history row)


def check_given() -> None:
    """Raises BadInput where the pipeline has not made yet what trials start from: each of them would fail."""
    for path in GIVEN:
        if not path.exists():
            raise BadInput(f"{path}: missing; allowed: the output of an earlier stage (dvc repro makes it)")


def run(method: str, tree: dict[str, Any], project: Path, scratch: Path, on_row: OnRow) -> dict[str, Any]:
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
    trained = Trained(project, scratch / "made")
    for name, decomposition in params.decompose.items():
        if decomposition.reads == "latents":
            for side in set(decomposition.sides) & set(params.latents.sides):
                trained.latents(side, params)
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

    def __init__(self, project: Path, made: Path):
        self.project, self.made = project, made
        lock = project / "dvc.lock"
        self.stages = YAML(typ="safe").load(lock.read_text())["stages"] if lock.exists() else {}

    def latents(self, side: int, params) -> None:
        """data/latents/SIDE, encoded with the project's autoencoder."""
        own = {"data": params.data.model_dump(), "latents": params.latents.model_dump()}
        path = paths.LATENTS / str(side)
        if (self.project / path).exists():
            _link(path, self.project / path)
        else:
            inputs = [paths.IMAGES, *sorted(paths.VAE.iterdir())]
            own["latents"].pop("sides")
            self._once(path, {**own, "inputs": digest_files(inputs)}, lambda: latents.main(str(side)))

    def decomposition(self, name: str, params) -> None:
        """data/decomposed/NAME."""
        path, section = paths.DECOMPOSED / name, params.decompose[name].model_dump()
        if self._is_projects(f"decompose@{name}", {f"decompose.{name}": section}, path):
            _link(path, self.project / path)
            return
        inputs = [paths.IMAGES, *sorted(paths.LATENTS.glob("*/latents.safetensors"))]
        self._once(path, {"section": section, "inputs": digest_files(inputs)}, lambda: decompose.main(name))

    def part(self, name: str, params, on_row: Callable[[dict[str, float]], None]) -> None:
        """models/METHOD/NAME, reused wherever everything that decides its weights is equal."""
        student = name in params.students
        module, stage, kind = (distill, "distill", "students") if student else (train, "train", "parts")
        section = getattr(params, kind)[name]
        path, inputs = paths.MODELS / section.method / name, [paths.DECOMPOSED / section.reads]
        tracked = {"seed": params.seed, f"{kind}.{name}": section.model_dump()}
        if student:
            tracked["data.channels"] = params.data.channels
            inputs += (paths.MODELS / section.teacher).iterdir()
        unchanged = all(path.readlink().is_relative_to(self.project / path.parent) for path in inputs)
        if unchanged and self._is_projects(f"{stage}@{name}", tracked, path):
            _link(path, self.project / path)
            return
        job = module.job(name, params)
        self._once(path, {"key": job.key}, lambda: fitting.work(job, lambda seen: None, [on_row]))

    def _is_projects(self, stage: str, tracked: dict[str, Any], path: Path) -> bool:
        """Whether the pipeline ran a stage with these settings, and left its result."""
        found = self.stages.get(stage, {}).get("params", {}).get(settings.EXPERIMENT.as_posix())
        return found == tracked and (self.project / path).exists()

    def _once(self, path: Path, key: dict[str, Any], make: Callable[[], None]) -> None:
        """Makes `path`, or waits for the trial that is making it; a link is left in its place."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
        place = self.made / f"{path.name}-{digest}"
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
