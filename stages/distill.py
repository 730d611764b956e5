"""Distils a few-step student from a trained method, and writes its weights to models/METHOD/STUDENT.

The student is saved with the resolutions and noise levels of its steps, as a plain network with adapters merged. If its
teacher is a diffusers network, it is saved as a LoRA that diffusers loads.
"""

from __future__ import annotations

from stages.common.harness import command

if __name__ == "__main__":  # first: the imports below take seconds
    command(__doc__, {"student": "a key of `students`"})

from functools import partial

from multiscale import methods
from multiscale.core import intact
from multiscale.core.settings import Bad
from stages.common import fitting, teachers
from stages.common.errors import refuse
from stages.common.paths import DECOMPOSED, EXPERIMENT
from stages.schema import Experiment


def job(student: str, params: Experiment) -> fitting.Job:
    """The distillation of one student of the experiment, after checking its teacher."""
    if student not in params.students:
        raise refuse("distill", "STUDENT", student, f"one of {', '.join(params.students)}")
    section = params.students[student]
    dataset, teacher = DECOMPOSED / section.dataset, teachers.trained(section.teacher, f"distill@{student}")
    intact.check(dataset, teacher)
    try:
        methods.teaching(section.kind).check(section, teacher, dataset)
    except Bad as error:
        raise refuse(EXPERIMENT, f"students.{student}.{error.key}", error.value, error.allowed) from None
    build = partial(methods.parts(section.kind).build_student, student, section, dataset, teacher)
    return fitting.part_job(student, build, section, params, [dataset, teacher], f"distill-{section.kind}")


def main(params: Experiment, student: str) -> None:
    fitting.train(job(student, params), params.run)
