"""Trains one part of one method, and writes its averaged weights to models/METHOD/PART."""

from __future__ import annotations

from stages.common.harness import command

if __name__ == "__main__":  # first: the imports below take seconds
    command(__doc__, {"part": "a key of `parts`"})

from functools import partial

from multiscale import methods
from multiscale.core import intact
from stages import fitting
from stages.common.errors import refuse
from stages.common.paths import DECOMPOSED
from stages.schema import Experiment


def job(part: str, params: Experiment) -> fitting.Job:
    """The training of one part of the experiment."""
    if part not in params.parts:
        raise refuse("train", "PART", part, f"one of {', '.join(params.parts)}")
    section = params.parts[part]
    folder = DECOMPOSED / section.dataset
    intact.check(folder)
    build = partial(methods.parts(section.kind).build_part, part, section, folder)
    return fitting.part_job(part, build, section, params, [folder], f"train-{section.kind}")


def main(params: Experiment, part: str) -> None:
    fitting.train(job(part, params), params.run)
