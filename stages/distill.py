"""Distils a student of a few steps from a trained method, and leaves its weights in models/METHOD/STUDENT.

The student is saved as a plain network, an adapter worked in, with the sides and noise levels of its steps beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from multiscale import methods
from multiscale.methods.swd.adapter import merged
from multiscale.training.part import Part
from stages import fitting, teacher
from stages.common import codec, settings
from stages.common.harness import command
from stages.common.paths import DECOMPOSED, MODELS


def build(name: str, section: dict, folder: Path, teacher_folder: Path) -> tuple:
    """The student, made by its method's module."""
    return methods.parts(section["kind"]).build_student(name, section, folder, teacher_folder)


def save(folder: Path, part: Part, config: dict, pyramid: Path) -> None:
    """The student without its adapter: whoever samples it needs no peft."""
    part.players[part.main] = merged(part.players[part.main])
    fitting.save_weights(folder, part, config)
    codec.carry(pyramid, folder)


def job(student: str, params, code: Iterable[Path] | None = None) -> fitting.Job:
    """The distillation of one student as the experiment describes it, its teacher checked; see `fitting.job`."""
    if student not in params.students:
        raise settings.refuse("distill", "STUDENT", student, f"one of {', '.join(params.students)}")
    section = params.students[student]
    pyramid = DECOMPOSED / section.reads
    found = [path for path in (MODELS / section.teacher).glob("[!.]*") if path.is_dir()]
    if len(found) != 1:
        raise settings.refuse(MODELS / section.teacher, "parts", len(found), "one trained part (dvc repro trains it)")
    if section.dmd.weight and (failure := teacher.unable(found[0], pyramid, section)):
        side, distance = failure
        allowed = f"0.0: the teacher {section.teacher} cannot generate at {side} px, where its latents are "
        allowed += f"{distance:.2f} away from the data's (at most {teacher.LARGEST}; 1 is the mean image every time)"
        raise settings.refuse(settings.EXPERIMENT, f"students.{student}.dmd.weight", section.dmd.weight, allowed)
    folder = pyramid
    if section.synthetic:
        folder = teacher.images(
            found[0], pyramid, section.synthetic, params.data.channels, params.latents.precision, code
        )
    return fitting.job(
        student,
        partial(build, student, section.model_dump(), folder, found[0]),
        section,
        section.training,
        params.seed if section.seed is None else section.seed,
        [folder, found[0]],
        MODELS / section.method / student,
        partial(save, pyramid=pyramid),
        code,
    )


def main(student: str) -> None:
    params = settings.load("seed", "run", "data", "latents", "students")
    fitting.train(job(student, params), params.run)


if __name__ == "__main__":
    command(main, __doc__, {"student": "a key of `students`"})
