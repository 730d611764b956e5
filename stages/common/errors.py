"""What the user can mend, in the one line that they read. Imports nothing: flows start without torch."""

from __future__ import annotations


class BadInput(Exception):
    """Something the user can mend. Its text is the one line they read; the command ends with exit code 2."""


def refuse(file: object, key: str, value: object, allowed: str) -> BadInput:
    """The one form of that line: file, key, value and what is allowed."""
    shown = repr(value)
    return BadInput(
        f"{file}: {key}: {shown if len(shown) <= 120 else shown[:117] + '...'} is not allowed; allowed: {allowed}"
    )


def missing(path: object) -> BadInput:
    """The line for what an earlier stage should have left."""
    return BadInput(f"{path}: missing; allowed: the output of an earlier stage (dvc repro makes it)")
