"""The trained teacher of a student, or of images to learn from."""

from __future__ import annotations

from pathlib import Path

from stages.common.errors import BadInput
from stages.common.paths import MODELS, parts_of


def trained(teacher: str, stage: str) -> Path:
    """The folder of the part of a method that the stage at this address needs. Raises BadInput before it is there."""
    found = parts_of(teacher)
    if len(found) != 1:
        raise BadInput(f"{MODELS / teacher}: the teacher {teacher} is not trained yet; run dvc repro {stage}")
    return found[0]
