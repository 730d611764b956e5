"""Errors that the user can fix. Imports no torch, so that flows start without it."""

from __future__ import annotations

import os
from pathlib import Path

from multiscale.core.intact import Damaged
from stages.common.paths import EXPERIMENT, made_by

LONGEST = 1000  # characters of a line


def one_line(said: object) -> str:
    """What an error says, in one line."""
    return " ".join(str(said).split())


def printable(text: str) -> str:
    """A text without the line breaks and escape codes that a terminal would obey, cut in the middle if it is long."""
    line = "".join(sign if sign.isprintable() else ascii(sign)[1:-1] for sign in " ".join(text.split("\n")))
    return line if len(line) <= LONGEST else f"{line[: LONGEST // 2 - 5]} ... {line[-LONGEST // 2 :]}"


class BadInput(Exception):
    """An error that the user can fix; its text is one line, and the command ends with exit code 2."""

    def __init__(self, text: str):
        super().__init__(printable(text))


def refuse(file: object, key: str, value: object, allowed: str) -> BadInput:
    """The error for a bad value: file, key, value and what is allowed."""
    try:
        shown = repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        shown = f"{type(value).__name__} of too many digits"
    return BadInput(
        f"{file}: {key}: {shown if len(shown) <= 120 else shown[:117] + '...'} is not allowed; allowed: {allowed}"
    )


def missing(path: object) -> BadInput:
    """The error for what is not there: an earlier stage's output, a program, or a link among images that DVC reads."""
    if os.path.islink(str(path)):  # no stage makes links, and DVC reads them before us
        return refuse(EXPERIMENT, "data.path", str(path), "links that lead to a file or a folder")
    made = made_by(Path(str(path))) or made_by(Path(str(path), "*"))  # what is in it, of a folder of results
    advice = "; an earlier stage makes it: run dvc repro" if made else ""
    return BadInput(f"{path}: missing{advice}")


def damaged(error: Damaged) -> BadInput:
    """The error for a file that is not as it was written: what it is part of, and what makes that anew."""
    out, stage = made_by(error.path) or (error.path, None)
    made = f"{stage} makes it: delete {out}, then dvc repro" if stage else f"delete {out}, then run this again"
    return BadInput(f"{error}; {made}")
