"""The training-free resolution shift: a teacher of all resolutions, and the resolutions of its steps."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator

from multiscale.core.settings import Above0, Bad, Experiment, Fetched, Name, Sampled, Steps, Trained
from multiscale.guidance import Guidance
from multiscale.methods.shift.schedule import Schedule
from multiscale.training.part import Training

# One batch, whose loss is measured; gradients are zero, and with these the weights stay the same bits.
UNTRAINED = {"images": 1, "optimizer": "adamw", "weight_decay": 0.0}


class Shifted(Trained):
    """A teacher as it is, with the resolutions of its steps; nothing is trained."""

    kind: Literal["shift"]
    teacher: Name
    """a method of kind swd that was trained at every resolution of the schedule"""
    schedule: Schedule
    training: Training

    @model_validator(mode="before")
    @classmethod
    def _untrained(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(own := value.get("training"), dict):
            return value | {"training": own | UNTRAINED}
        return value


class ShiftSolver(Guidance):
    """Euler's steps of a flow."""

    steps: Steps = 25
    """over all resolutions, evenly spaced in time"""
    shift: Above0 = 1.0
    """of the steps towards noise; 1: none, published for SD3.5: 3"""


class ShiftMethod(Sampled):
    """The sampler of the resolution shift."""

    kind: Literal["shift"]
    solver: ShiftSolver = ShiftSolver()
    correction: bool = True
    """noise corrected for the resolution; false: the same at each, an ablation"""


STUDENT, METHOD = Shifted, ShiftMethod
DATASETS = ("swd",)


def check_student(experiment: Experiment, key: str, student: Shifted) -> None:
    """Refuses a teacher that is not trained at random resolutions, and resolutions that it has not seen."""
    teachers = {name: part for name in experiment.methods if (part := _teaching(experiment, name))}
    if student.teacher not in teachers:
        allowed = f"one of {', '.join(teachers) or 'none'}: methods of one trained part of kind swd"
        raise Bad(f"{key}.teacher", student.teacher, allowed)
    taught = teachers[student.teacher].dataset
    resolutions, seen = student.schedule.resolutions, experiment.decompose[taught].resolutions
    if student.dataset != taught:
        raise Bad(f"{key}.dataset", student.dataset, f"{taught}, which its teacher was trained on")
    if resolutions[-1] != seen[-1] or not set(resolutions) <= set(seen):
        allowed = f"resolutions of decompose.{taught}, {seen}, up to the last"
        raise Bad(f"{key}.schedule.resolutions", resolutions, allowed)


def _teaching(experiment: Experiment, method: str) -> Any:
    """The only part of a method, if it is a teacher of kind swd that was trained here; else None."""
    parts = list(experiment.parts_of(method).values())
    one = parts[0] if len(parts) == 1 else None
    fetched, distilled = isinstance(one, Fetched), hasattr(one, "teacher")
    return one if one and one.kind == "swd" and not (fetched or distilled) else None


def check_method(experiment: Experiment, key: str, method: ShiftMethod, parts: list[Shifted]) -> None:
    """Refuses anything but one part."""
    if len(parts) != 1:
        raise Bad(key, len(parts), "one part")
