"""SwD: the pyramid of latents, its teacher, and students of a few steps at growing sides."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from multiscale.flow import Solver
from multiscale.methods.swd.schedule import FACTOR, PUBLISHED, VARIANCE_PRESERVING, Schedule, published
from multiscale.networks.settings import DiTNetwork
from multiscale.settings import (
    Bad,
    Count,
    Experiment,
    Name,
    Positive,
    Sampled,
    Section,
    Share,
    Trained,
    Training,
    allowed_of,
    preset,
)

Weight = Annotated[float, Field(ge=0)]
PRESETS = {  # the published schedules of rectified flows, in pixels
    name: (tuple(FACTOR * side for side in published(name).sides), published(name).sigmas)
    for name in PUBLISHED
    if name not in VARIANCE_PRESERVING
}


class Pyramid(Section):
    """The latents of each image at several sides in pixels, each encoded from the image downsampled to it."""

    kind: Literal["swd"]
    reads: Literal["latents"] = "latents"  # in data/
    sides: Annotated[list[Positive], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> Pyramid:
        if self.sides != sorted(set(self.sides)):
            raise Bad("sides", self.sides, "sides that grow")
        return self


class TeacherPart(Trained):
    """A rectified-flow DiT trained at a random side of a pyramid each batch."""

    kind: Literal["swd"]
    reads: Name
    network: DiTNetwork
    label_dropout: Share = 0.1
    times: Literal["uniform", "logit-normal"] = "logit-normal"
    training: Training


class Steps(Section):
    """The student's steps: side in pixels and noise level of each; `preset: NAME` in a recipe stands for both."""

    sides: Annotated[list[Positive], Field(min_length=1)]
    sigmas: Annotated[list[float], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _expand(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("preset") in VARIANCE_PRESERVING:
            reason = "its times belong to a variance-preserving process and are no noise levels of a rectified flow"
            raise Bad("preset", value["preset"], f"one of {', '.join(PRESETS)} ({reason})")
        return preset(value, PRESETS, ("sides", "sigmas"))

    @model_validator(mode="after")
    def _check(self) -> Steps:
        try:
            Schedule(tuple(self.sides), tuple(self.sigmas))
        except ValueError as error:
            key = str(error).partition(":")[0]
            raise Bad(key, getattr(self, key), allowed_of(error)) from None
        return self


class MMD(Section):
    """Matching of mean token features; weight 0 leaves it out."""

    weight: Weight = 1.0
    kernel: Literal["linear", "rbf"] = "linear"
    width: Annotated[float, Field(gt=0)] = 100.0  # of the rbf kernel
    penalty: Literal["huber", "mse"] = "huber"  # of the linear kernel: as released, or the paper's
    average: Literal["image", "batch"] = "image"
    features: Literal["teacher", "fake"] = "teacher"  # as in the paper, or as released
    noised: bool = True  # false: features of clean latents, an ablation


class DMD(Section):
    """Distribution matching through the teacher's score and the fake one; weight 0 leaves it out."""

    weight: Weight = 0.0
    cfg: Weight = 2.0  # guidance of the teacher's score


class GAN(Section):
    """A discriminator on the fake score's features; weight 0 leaves it out (5e-3 is published)."""

    weight: Weight = 0.0
    discriminator: Weight = 1e-2  # weight of its own loss beside the fake score's


class Fake(Section):
    """How the fake score is trained; it exists with DMD or GAN only."""

    updates: Positive = 5  # for each update of the generator
    target: Literal["x0", "v"] = "x0"


class Synthetic(Section):
    """Training images made by the teacher at the full side."""

    images: Positive
    solver: Solver


class Student(Trained):
    """A few-step generator distilled from a teacher, whose network it shares."""

    kind: Literal["swd"]
    reads: Name
    teacher: Name  # a method of one part: a teacher of kind swd, or a DiT of kind msf
    schedule: Steps
    lora_rank: Positive | None = None  # null: full copies of the teacher
    block: Count  # of the teacher, from zero: the features of MMD and GAN
    upscaling: Literal["A", "B", "C"] = "B"
    shift: Annotated[float, Field(gt=0)] = 3.0  # of the grid that all re-noising draws from
    mmd: MMD = MMD()
    dmd: DMD = DMD()
    gan: GAN = GAN()
    fake: Fake = Fake()
    synthetic: Synthetic | None = None  # null: the data's own images
    training: Training

    @model_validator(mode="after")
    def _check(self) -> Student:
        if not (self.mmd.weight or self.dmd.weight or self.gan.weight):
            raise Bad("mmd.weight", 0.0, "a positive weight of mmd, dmd or gan")
        if self.mmd.weight and self.mmd.features == "fake" and not (self.dmd.weight or self.gan.weight):
            raise Bad("mmd.features", "fake", "teacher: without dmd and gan there is no fake score")
        return self


class SwDMethod(Sampled):
    """The sampler of a teacher or of a student, whose steps come with its weights."""

    kind: Literal["swd"]
    parts: Annotated[list[Name], Field(min_length=1, max_length=1)]
    solver: Solver | None = None  # a teacher's; null for a student


DECOMPOSITION, PART, METHOD, STUDENT = Pyramid, TeacherPart, SwDMethod, Student
READS = ("swd",)


def check_decomposition(experiment: Experiment, key: str, section: Pyramid) -> None:
    """Whether its sides exist, end at the full size, and are encoded."""
    if section.sides[-1] != experiment.data.size:
        raise Bad(f"{key}.sides", section.sides, f"a last side of data.size ({experiment.data.size})")
    for side in section.sides:
        if side not in experiment.latents.sides:
            raise Bad("latents.sides", experiment.latents.sides, f"{side} among them, since {key}.sides needs it")


def check_part(experiment: Experiment, key: str, part: TeacherPart) -> None:
    """Whether the teacher's patch divides every side."""
    check_patch(experiment, f"{key}.network.patch", part.network.patch, experiment.decompose[part.reads].sides)


def check_patch(experiment: Experiment, key: str, patch: int, sides: list[int]) -> None:
    """Whether a patch divides the latents of each side in pixels."""
    for side in sides:
        if side // experiment.vae.factor % patch:
            raise Bad(key, patch, f"a divisor of the latent side {side // experiment.vae.factor}")


def check_student(experiment: Experiment, key: str, student: Student) -> None:
    """Whether its teacher is a DiT that fits, its block exists, and its steps end at the full side."""
    teachers = {name: part for name in experiment.methods if (part := _teacher(experiment, name))}
    if student.teacher not in teachers:
        allowed = f"one of {', '.join(teachers) or 'none'}: methods of one DiT (kind swd, or msf with one scale)"
        raise Bad(f"{key}.teacher", student.teacher, allowed)
    network = teachers[student.teacher].network
    if student.block >= network.depth:
        raise Bad(f"{key}.block", student.block, f"0 to {network.depth - 1}, the blocks of {student.teacher}")
    sides, encoded = student.schedule.sides, experiment.decompose[student.reads].sides
    if sides[-1] != encoded[-1]:
        raise Bad(f"{key}.schedule.sides", sides, f"a last side of data.size ({encoded[-1]})")
    for side in sides:
        if side not in encoded:
            raise Bad(f"{key}.schedule.sides", sides, f"sides of decompose.{student.reads}, {encoded}")
    check_patch(experiment, f"{key}.schedule.sides", network.patch, sides)


def _teacher(experiment: Experiment, method: str):
    """The part of a method that can teach, or None."""
    names = experiment.methods[method].parts
    part = experiment.parts.get(names[0]) if len(names) == 1 else None
    one_scale = part and part.kind == "msf" and len(experiment.decompose[part.reads].sides) == 1
    return part if one_scale or isinstance(part, TeacherPart) else None


def check_method(experiment: Experiment, key: str, method: SwDMethod, parts: list[TeacherPart | Student]) -> None:
    """Whether a teacher has a solver and a student none."""
    student = isinstance(parts[0], Student)
    if student and method.solver:
        raise Bad(
            f"{key}.solver",
            method.solver.model_dump(),
            "null, since a student is sampled by the steps that it was trained for",
        )
    if not student and not method.solver:
        raise Bad(f"{key}.solver", None, "a solver, since the part is a teacher")
