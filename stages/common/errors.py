"""Errors that the user can fix. Imports nothing, so that flows start without torch."""

from __future__ import annotations


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
