"""Distils a few-step student from a trained method, and writes its weights to models/METHOD/STUDENT.

The student is saved with the resolutions and noise levels of its steps, as a plain network: adapters are merged.
"""

from __future__ import annotations

from stages.common.harness import command

if __name__ == "__main__":  # first: the imports below take seconds
    command(__doc__, {"student": "a key of `students`"})

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from multiscale import methods
from multiscale.core import intact
from multiscale.core.device import default_device, resolve_precision
from multiscale.core.models import AUTOENCODER, TEXT
from multiscale.core.settings import Bad
from multiscale.core.storage import sealed_folder, write_blocks, write_json
from multiscale.networks import autoencoder
from stages import fitting
from stages.common import keys
from stages.common.errors import BadInput, refuse
from stages.common.harness import progress
from stages.common.paths import DECOMPOSED, EXPERIMENT, MODELS, SCRATCH, parts_of
from stages.latents import Encoder
from stages.schema import Experiment


def images(made: Any, teacher: Path, dataset: Path, precision: str, code: str) -> Path:
    """Generates a dataset with a teacher, which replaces `dataset`, and returns its folder in the scratch folder.

    `made` is the result of the method's `teaching.images`. Images are encoded in `precision`, as in the stage
    `latents`. The dataset is cached for other students, under a key as of `fitting.job`.
    """
    device, beside = default_device(), dataset / AUTOENCODER
    precision = resolve_precision(precision, device)
    settings = {
        "section": made.settings.model_dump(),
        "precision": [precision, resolve_precision("auto", device)],  # of encoding, of sampling
    }
    inputs = [teacher, dataset / "statistics.json", *([beside] if beside.exists() else [])]
    out = SCRATCH / "synthetic" / keys.key(settings, inputs, [code])
    if out.exists():
        intact.check(out)
        return out
    encoder = Encoder(autoencoder.beside(dataset), precision)

    def encode(pixels: Tensor, resolution: int) -> Tensor:
        return encoder.encode(pixels, resolution)[0].half().float()  # rounded as stored latents are

    with sealed_folder(out) as folder, progress("images of the teacher", made.count) as reach:
        shapes = {**made.shapes, "label": (np.int64, (made.count,))}
        write_blocks(folder / "targets.safetensors", shapes, made.blocks(encode), reach=reach)
        write_json(folder / "statistics.json", made.statistics.model_dump())
        if (dataset / TEXT).is_dir():
            shutil.copytree(dataset / TEXT, folder / TEXT)
    return out


def job(student: str, params: Experiment) -> fitting.Job:
    """The distillation of one student of the experiment, after checking its teacher."""
    if student not in params.students:
        raise refuse("distill", "STUDENT", student, f"one of {', '.join(params.students)}")
    section = params.students[student]
    code = f"distill-{section.kind}"
    dataset = folder = DECOMPOSED / section.dataset
    found = parts_of(section.teacher)
    if len(found) != 1:
        where = MODELS / section.teacher
        raise BadInput(f"{where}: the teacher {section.teacher} is not trained yet; run dvc repro distill@{student}")
    teacher, teaching = found[0], methods.teaching(section.kind)
    intact.check(dataset, teacher)
    try:
        teaching.check(section, teacher, dataset)
    except Bad as error:
        raise refuse(EXPERIMENT, f"students.{student}.{error.key}", error.value, error.allowed) from None
    if made := teaching.images(section, teacher, dataset):
        folder = images(made, teacher, dataset, params.latents.precision, code)
    build = partial(methods.parts(section.kind).build_student, student, section, folder, teacher)
    return fitting.part_job(student, build, section, params, [folder, teacher], code)


def main(params: Experiment, student: str) -> None:
    fitting.train(job(student, params), params.run)
