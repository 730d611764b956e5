"""What a sweep is: params/sweeps/NAME.yaml, checked against the experiment that it varies.

    method: dit
    metric: kid
    space:
      parts.dit.training.lr: {log: [1.0e-4, 1.0e-2]}      # or uniform, int: both ends; choice: values
      parts.dit.training.ema_images: {int: [500, 8000]}

A key may be one that the experiment leaves at its default. `grid` lists values to try one by one; a list of grids tries
one grid after the other.
"""

from __future__ import annotations

import itertools
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from flows.sweeps import SWEEPS
from multiscale.core.settings import Bad, Few, Name, Samples, Section, Seed
from stages.common import settings
from stages.common.errors import refuse
from stages.common.paths import EXPERIMENT
from stages.common.reading import named, read_yaml
from stages.schema import Experiment

METRICS = {  # and which way is better
    "kid": "min",
    "fd": "min",
    "inception_score": "max",
    "precision": "max",
    "recall": "max",
    "label_accuracy": "max",
    "seconds_per_image": "min",
    "flops_per_image": "min",
}
KINDS = ("log", "uniform", "int", "choice", "grid")
NAMED = "[a-z0-9-]+"  # what the keys of the dashboard's artifacts are made of

MOST = 1000  # points of all grids, or ends and choices: each is checked as an experiment of its own

Point = dict[str, Any]  # a value for each varied key


@dataclass(frozen=True)
class Axis:
    """The values that one setting may take: two ends of a range, or a list."""

    kind: str
    values: tuple[Any, ...]

    @classmethod
    def of(cls, key: str, given: Any) -> Axis:
        """From {kind: values}. Raises Bad for an empty list and for what is no range."""
        if not isinstance(given, dict) or len(given) != 1 or next(iter(given)) not in KINDS:
            raise Bad(f"space.{key}", given, f"one of {', '.join(KINDS)} with its values")
        ((kind, values),) = given.items()
        number = int if kind == "int" else int | float
        allowed = None
        if not isinstance(values, list) or not values:
            allowed = "a list of at least one value"
        elif kind not in ("choice", "grid"):
            if len(values) != 2 or not all(isinstance(v, number) and not isinstance(v, bool) for v in values):
                allowed = "two whole numbers" if kind == "int" else "two numbers"
            elif not values[0] < values[1] or not all(map(math.isfinite, values)):
                allowed = "a lower and a higher end"
            elif kind == "log" and values[0] <= 0:
                allowed = "ends above 0"
        if allowed:
            raise Bad(f"space.{key}.{kind}", values, allowed)
        return cls(kind, tuple(map(float, values) if kind in ("log", "uniform") else values))  # as they are searched

    @property
    def size(self) -> float:
        """How many values there are."""
        if self.kind == "int":
            return int(self.values[1] - self.values[0] + 1)
        return len(self.values) if self.kind in ("choice", "grid") else math.inf


class Sweep(Section):
    """A file of params/sweeps."""

    method: Name
    """whose parts are trained, a key of `methods`"""
    metric: Literal[tuple(METRICS)]
    """what ranks the trials"""
    trials: Annotated[int, Field(gt=0, le=10_000)] = 16
    """of a searched space"""
    budget: Annotated[float, Field(gt=0, le=1)] = 1.0
    """share of each part's training images"""
    images: Annotated[Samples, Field(ge=4)] = 200
    """samples a trial"""
    concurrency: Few = 1
    """trials at once; each asks for run.threads and run.gpus"""
    stop_early: bool = False
    """ASHA ends trials whose validation loss is behind"""
    seed: Seed = 0
    """of the search"""
    settings: Point = {}
    """the same in every trial"""
    space: dict[str, Any] | list[dict[str, Any]]
    """key: {kind: values}"""

    @model_validator(mode="after")
    def _check(self) -> Sweep:
        axes = [axis for space in self.spaces for axis in space.items()]
        if not all(self.spaces) or not axes:
            raise Bad("space", self.space, "at least one setting with its values")
        grids = [key for key, axis in axes if axis.kind == "grid"]
        if grids and len(grids) < len(axes):
            raise Bad("space", grids, "grid for all settings, or for none")
        if len(self.spaces) > 1 and not grids:
            raise Bad("space", f"{len(self.spaces)} spaces", "one space, unless all are grids")
        sizes = [[len(axis.values) for axis in space.values()] for space in self.spaces]
        if sum(map(math.prod if grids else sum, sizes)) > MOST:
            raise Bad("space", f"over {MOST} points", f"at most {MOST} points of all grids, or values of all choices")
        if self.stop_early:
            for key, _ in axes:
                setting = key.split(".", 2)[-1]
                others = "training.images", "training.validation_images"
                if not setting.startswith(("training.", "network.")) or setting in others:
                    raise Bad("stop_early", True, f"false, since {key} changes what the loss means, or needs none")
        return self

    @property
    def spaces(self) -> list[dict[str, Axis]]:
        """The axes of each space."""
        given = self.space if isinstance(self.space, list) else [self.space]
        return [{key: Axis.of(key, values) for key, values in space.items()} for space in given]

    @property
    def mode(self) -> str:
        """Whether the metric is to be 'min' or 'max'."""
        return METRICS[self.metric]

    @property
    def points(self) -> list[Point]:
        """The points of a grid, each once; none of a searched space."""
        grids = [space for space in self.spaces if all(axis.kind == "grid" for axis in space.values())]
        points = [
            dict(zip(grid, values))
            for grid in grids
            for values in itertools.product(*(axis.values for axis in grid.values()))
        ]
        return [point for index, point in enumerate(points) if point not in points[:index]]

    @property
    def count(self) -> int:
        """How many trials there will be: all points of a grid, of a searched space no more than it has."""
        sizes = [min(axis.size, self.trials) for space in self.spaces for axis in space.values()]
        return len(self.points) or int(min(self.trials, math.prod(sizes)))


@dataclass(frozen=True)
class Plan:
    """A sweep with the experiment that it varies, both valid."""

    name: str
    sweep: Sweep
    experiment: Experiment

    @property
    def file(self) -> Path:
        return SWEEPS / f"{self.name}.yaml"

    @property
    def settings(self) -> dict[str, Any]:
        """All that decides what its trials find."""
        sweep = self.sweep.model_dump(exclude={"trials", "concurrency"})
        return sweep | {"experiment": self.experiment.model_dump(exclude={"run"})}

    def changed(self, point: Point) -> Experiment:
        """The experiment with the values of a point, at full budget. Raises BadInput."""
        tree = self.experiment.model_dump()
        for key, value in {**self.sweep.settings, **point}.items():
            self._put(tree, key, value)
        return settings.validate(tree, self.file)

    def trial(self, point: Point) -> Experiment:
        """The experiment of a trial: one method, after its teacher, at the sweep's budget. Raises BadInput."""
        whole, sweep = self.changed(point), self.sweep
        own = whole.parts_of(sweep.method)
        students = [whole.students[name] for name in own if name in whole.students]
        made = [whole.synthetic[each.dataset] for each in students if each.dataset in whole.synthetic]
        teachers = [each.teacher for each in (*students, *made)]
        parts = {name: part for name, part in whole.trained.items() if part.method in (*teachers, sweep.method)}
        tree = whole.model_dump()
        for section, names in (
            ("methods", (*teachers, sweep.method)),
            ("parts", parts),
            ("students", parts),
            ("decompose", whole.needed_by(parts.values())),
            ("synthetic", whole.needed_by(parts.values())),
        ):
            tree[section] = {name: entry for name, entry in tree[section].items() if name in names}
        sections = tree["parts"] | tree["students"]
        for training in (sections[name]["training"] for name in own if "training" in sections[name]):
            for key in ("images", "warmup_images", "log_images"):
                training[key] = max(min(training[key], training["batch"]), round(training[key] * sweep.budget))
        tree["methods"][sweep.method]["steps"] = []  # a trial is one point
        tree["sample"]["images"] = sweep.images
        tree["evaluate"] |= {"second_extractor": None, "dinov2": None}  # one extractor ranks the trials
        tree["run"] |= {"workers": 0, "previews": 0, "tracker": None}  # a trial is one process, whose folder goes
        return settings.validate(tree, self.file)

    @property
    def images(self) -> int:
        """The training images of a trial, over all parts of the method."""
        return sum(training.images for training in self.trial({}).trainings_of(self.sweep.method))

    @property
    def open_to(self) -> list[str]:
        """The sections that a trial can vary."""
        parts = self.experiment.parts_of(self.sweep.method)
        trained = [f"{'students' if name in self.experiment.students else 'parts'}.{name}" for name in parts]
        datasets = sorted(self.experiment.needed_by(parts.values()))
        made = [f"{'synthetic' if name in self.experiment.synthetic else 'decompose'}.{name}" for name in datasets]
        return [f"methods.{self.sweep.method}", *trained, *made]

    def _put(self, tree: dict[str, Any], key: str, value: Any) -> None:
        """Sets a dotted key below the sections that a trial can vary."""
        if not key.startswith(tuple(f"{section}." for section in self.open_to)) and key != "latents.resolutions":
            raise refuse(self.file, "space", key, f"keys below {', '.join(self.open_to)}, and latents.resolutions")
        path, _, last = key.rpartition(".")
        try:
            section = at(tree, path)
            section[int(last) if isinstance(section, list) else last] = value
        except (LookupError, TypeError, ValueError, AttributeError):
            raise refuse(self.file, "space", key, "keys that `python -m stages.recipe --defaults` prints") from None


def at(node: Any, key: str) -> Any:
    """The value at a dotted key of an experiment or of its tree."""
    for step in key.split("."):
        node = (
            node[int(step)] if isinstance(node, list) else node[step] if isinstance(node, dict) else getattr(node, step)
        )
    return node


def load(name: str) -> Plan:
    """The sweep of params/sweeps/NAME.yaml. Raises BadInput unless each end of each range makes a valid experiment."""
    known = named(SWEEPS)
    if name not in known:
        raise refuse(SWEEPS, "sweep", name, f"one of {', '.join(known) or 'none yet'}")
    if not re.fullmatch(NAMED, name):
        raise refuse(SWEEPS, "sweep", name, "a name of a-z, 0-9 and '-' alone, as the dashboard takes them")
    file = SWEEPS / f"{name}.yaml"
    value = read_yaml(file)
    try:
        sweep = Sweep.model_validate(value)
    except ValidationError as error:
        raise settings.explain(error, value, file) from None
    plan = Plan(name, sweep, settings.validate(read_yaml(EXPERIMENT), EXPERIMENT))
    if sweep.method not in plan.experiment.methods:
        raise refuse(file, "method", sweep.method, f"one of {', '.join(plan.experiment.methods)}")
    ends = [{key: value} for key, axis in sweep.spaces[0].items() for value in axis.values]
    for point in sweep.points or ends:  # of a range each end, the other settings as they are
        trainings = plan.trial(point).trainings_of(sweep.method)
        if sweep.stop_early and not all(training.validation_images for training in trainings):
            raise refuse(file, "stop_early", True, "false, or a training.validation_images above 0 in every trial")
    return plan
