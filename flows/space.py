"""What a sweep is: params/sweeps/NAME.yaml, checked against the experiment that it varies.

    method: dit                     # whose settings are varied; its parts are trained, it is sampled and evaluated
    metric: kid                     # what is searched for
    trials: 16                      # of a searched space; a grid has as many as it has points
    budget: 0.25                    # share of each part's training images
    images: 200                     # samples a trial
    space:
      parts.dit.training.lr: {log: [1.0e-4, 1.0e-2]}      # or uniform, int: both ends; choice: values
      parts.dit.training.ema_images: {int: [500, 8000]}

`grid` lists values to try one by one; a list of grids tries one after the other.
"""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from multiscale.settings import Bad, Name, Positive, Section
from stages.common import settings
from stages.common.settings import EXPERIMENT, BadInput, refuse
from stages.schema import Experiment

SWEEPS = Path("params/sweeps")
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


@dataclass(frozen=True)
class Axis:
    """The values that one setting may take: two ends of a range, or a list."""

    kind: str
    values: tuple

    @classmethod
    def of(cls, key: str, given: Any) -> Axis:
        """From {kind: values}. Raises Bad for what is empty or no range."""
        if not isinstance(given, dict) or len(given) != 1 or next(iter(given)) not in KINDS:
            raise Bad(f"space.{key}", given, f"one of {', '.join(KINDS)} with its values")
        ((kind, values),) = given.items()
        at = f"space.{key}.{kind}"
        if not isinstance(values, list) or not values:
            raise Bad(at, values, "a list of at least one value")
        if kind in ("choice", "grid"):
            return cls(kind, tuple(values))
        number = int if kind == "int" else int | float
        if len(values) != 2 or not all(isinstance(v, number) and not isinstance(v, bool) for v in values):
            raise Bad(at, values, "two whole numbers" if kind == "int" else "two numbers")
        if not values[0] < values[1] or not all(map(math.isfinite, values)):
            raise Bad(at, values, "a lower and a higher end")
        if kind == "log" and values[0] <= 0:
            raise Bad(at, values, "ends above 0")
        return cls(kind, tuple(values))


Space = dict[str, Any]


class Sweep(Section):
    """A file of params/sweeps."""

    method: Name
    metric: Literal[tuple(METRICS)]
    trials: Positive = 16
    budget: Annotated[float, Field(gt=0, le=1)] = 1.0
    images: Annotated[int, Field(ge=4)] = 200
    concurrency: Positive = 1  # trials at once; each asks for run.threads and run.gpus
    stop_early: bool = False  # ASHA: trials whose training loss is behind end early
    seed: Annotated[int, Field(ge=0)] = 0
    settings: dict[str, Any] = {}  # changed in every trial
    space: Space | list[Space]

    @model_validator(mode="after")
    def _check(self) -> Sweep:
        axes = [axes for space in self.spaces for axes in space.items()]
        if not all(self.spaces) or not axes:
            raise Bad("space", self.space, "at least one setting with its values")
        grids = [key for key, axis in axes if axis.kind == "grid"]
        if grids and len(grids) < len(axes):
            raise Bad("space", grids, "grid for all settings, or for none")
        if len(self.spaces) > 1 and not grids:
            raise Bad("space", f"{len(self.spaces)} spaces", "one space, unless all are grids")
        if self.stop_early:
            for key, _ in axes:
                part, _, setting = key.partition(".")[2].partition(".")
                if not setting.startswith(("training.", "network.")) or setting == "training.images":
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
    def points(self) -> list[dict[str, Any]]:
        """The points of a grid, each once; none of a searched space."""
        found = []
        for space in self.spaces:
            if all(axis.kind == "grid" for axis in space.values()):
                for values in itertools.product(*(axis.values for axis in space.values())):
                    point = dict(zip(space, values))
                    found += [point] if point not in found else []
        return found


@dataclass(frozen=True)
class Plan:
    """A sweep with the experiment that it varies, both valid."""

    name: str
    sweep: Sweep
    experiment: dict[str, Any]

    @property
    def file(self) -> Path:
        return SWEEPS / f"{self.name}.yaml"

    @property
    def settings(self) -> dict[str, Any]:
        """Those that the trials' results depend on."""
        return {**self.sweep.model_dump(exclude={"trials", "concurrency"}), "experiment": self.experiment | {"run": 0}}

    @property
    def stages(self) -> list[str]:
        """The addresses of the stages whose code a trial runs."""
        tree, method = self.trial({}), self.sweep.method
        encoded = any(section["reads"] == "latents" for section in tree["decompose"].values())
        return [
            *(f"latents@{side}" for side in self.experiment["latents"]["sides"] if encoded),
            *(f"decompose@{name}" for name in tree["decompose"]),
            *(f"train@{name}" for name in tree["parts"]),
            *(f"distill@{name}" for name in tree["students"]),
            f"sample@{method}",
            f"evaluate@{method}",
        ]

    def changed(self, point: dict[str, Any]) -> dict[str, Any]:
        """The experiment with the values of a point, at full budget."""
        tree = copy.deepcopy(self.experiment)
        for key, value in {**self.sweep.settings, **point}.items():
            _put(tree, key, value, self)
        return tree

    def trial(self, point: dict[str, Any]) -> dict[str, Any]:
        """The experiment that a trial runs: the method at the budget and images of the sweep, after its teacher."""
        tree, sweep = self.changed(point), self.sweep
        teachers = [tree["students"][part]["teacher"] for part in self._parts if part in tree["students"]]
        tree["methods"] = {name: tree["methods"][name] for name in (*teachers, sweep.method)}
        kept = {part for method in tree["methods"].values() for part in method["parts"]}
        for section in ("parts", "students"):
            tree[section] = {name: part for name, part in tree[section].items() if name in kept}
        trained = tree["parts"] | tree["students"]
        tree["decompose"] = {part["reads"]: tree["decompose"][part["reads"]] for part in trained.values()}
        for name in self._parts:
            training = trained[name]["training"]
            for key in ("images", "warmup_images", "log_images"):
                training[key] = max(min(training[key], training["batch"]), round(training[key] * sweep.budget))
        tree["sample"] |= {"images": sweep.images, "repeats": 1}
        tree["evaluate"]["second_extractor"] = None  # trials are ranked by one
        tree["run"]["workers"] = 0  # a trial is one process
        return tree

    @property
    def images(self) -> int:
        """How many images the parts of the method see in a trial."""
        tree = self.trial({})
        return sum((tree["parts"] | tree["students"])[part]["training"]["images"] for part in self._parts)

    @property
    def open_to(self) -> list[str]:
        """The sections that a trial can vary."""
        trained = {
            f"{kind}.{name}": self.experiment[kind][name]
            for kind in ("parts", "students")
            for name in self._parts
            if name in self.experiment[kind]
        }
        reads = sorted({section["reads"] for section in trained.values()})
        return [f"methods.{self.sweep.method}", *trained, *(f"decompose.{name}" for name in reads)]

    @property
    def _parts(self) -> list[str]:
        return self.experiment["methods"][self.sweep.method]["parts"]


def load(name: str) -> Plan:
    """The sweep of params/sweeps/NAME.yaml. Raises BadInput unless each end of each range makes a valid experiment."""
    known = sorted(path.stem for path in SWEEPS.glob("*.yaml"))
    if name not in known:
        raise refuse(SWEEPS, "sweep", name, f"one of {', '.join(known) or 'none yet'}")
    file = SWEEPS / f"{name}.yaml"
    try:
        value = settings.read_yaml(file)
        sweep = Sweep.model_validate(value)
    except ValidationError as error:
        raise settings.explain(error, value, file) from None
    experiment = Experiment.model_validate(_current()).model_dump()
    plan = Plan(name, sweep, experiment)
    if sweep.method not in experiment["methods"]:
        raise refuse(file, "method", sweep.method, f"one of {', '.join(experiment['methods'])}")
    for point in sweep.points or _ends(sweep.spaces[0]):
        settings.validate(plan.changed(point), file)
        settings.validate(plan.trial(point), file)
    return plan


def _current() -> dict[str, Any]:
    value = settings.read_yaml(EXPERIMENT)
    settings.validate(value, EXPERIMENT)
    return value


def _ends(space: dict[str, Axis]) -> list[dict[str, Any]]:
    """Each value of a list, and each end of a range, the other settings as they are."""
    return [{key: value} for key, axis in space.items() for value in axis.values]


def _put(tree: dict[str, Any], key: str, value: Any, plan: Plan) -> None:
    """Sets a dotted key that must exist already, below the sections that a trial can vary."""
    if not key.startswith(tuple(f"{section}." for section in plan.open_to)) and key != "latents.sides":
        raise refuse(plan.file, "space", key, f"keys below {', '.join(plan.open_to)}, and latents.sides")
    *path, last = (int(step) if step.isdigit() else step for step in key.split("."))
    node: Any = tree
    for depth, step in enumerate((*path, last)):
        inside = range(len(node)) if isinstance(node, list) else node if isinstance(node, dict) else ()
        if step not in inside:
            raise BadInput(f"{plan.file}: space: {key}: there is no '{step}'; allowed: {', '.join(map(str, inside))}")
        node = node[step] if depth < len(path) else node
    node[last] = value
