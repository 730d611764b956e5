"""Errors that the user can fix. Imports no torch, so that flows start without it."""

from __future__ import annotations

from multiscale.core.intact import Damaged
from stages.common.paths import made_by


class BadInput(Exception):
    """An error that the user can fix; its text is one line, and the command ends with exit code 2."""


def refuse(file: object, key: str, value: object, allowed: str) -> BadInput:
    """The error for a bad value: file, key, value and what is allowed."""
    shown = repr(value)
    return BadInput(
        f"{file}: {key}: {shown if len(shown) <= 120 else shown[:117] + '...'} is not allowed; allowed: {allowed}"
    )


def missing(path: object) -> BadInput:
    """The error for a missing output of an earlier stage."""
    return BadInput(f"{path}: missing; an earlier stage makes it: run dvc repro")


def damaged(error: Damaged) -> BadInput:
    """The error for a file that is not as it was written: what it is part of, and what makes that anew."""
    out, stage = made_by(error.path) or (error.path, None)
    made = f"{stage} makes it: delete {out}, then dvc repro" if stage else f"delete {out}, then run this again"
    return BadInput(f"{error}; {made}")
