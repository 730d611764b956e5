"""Trains one part of one method and leaves its averaged weights in models/METHOD/PART."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path

from multiscale import methods
from multiscale.training.part import Part
from stages import fitting
from stages.common import codec, settings
from stages.common.harness import command
from stages.common.images import classes
from stages.common.paths import DECOMPOSED, MODELS


def build(name: str, part: dict, folder: Path, count: int) -> tuple:
    """The part, made by its method's module."""
    return methods.parts(part["kind"]).build_part(name, part, folder, count)


def save(folder: Path, part: Part, config: dict, decomposition: Path) -> None:
    """The weights, beside the autoencoder that decodes what they make."""
    fitting.save_weights(folder, part, config)
    codec.carry(decomposition, folder)


def job(part: str, params, code: Iterable[Path] | None = None) -> fitting.Job:
    """The training of one part as the experiment describes it; see `fitting.job` for `code`."""
    if part not in params.parts:
        raise settings.refuse("train", "PART", part, f"one of {', '.join(params.parts)}")
    section = params.parts[part]
    folder = DECOMPOSED / section.reads
    methods.parts(section.kind)  # loaded now: its code is part of the key
    return fitting.job(
        part,
        partial(build, part, section.model_dump(), folder, classes()),
        section,
        section.training,
        params.seed if section.seed is None else section.seed,
        [folder],
        MODELS / section.method / part,
        partial(save, decomposition=folder),
        code,
    )


def main(part: str) -> None:
    params = settings.load("seed", "run", "parts")
    fitting.train(job(part, params), params.run)


if __name__ == "__main__":
    command(main, __doc__, {"part": "a key of `parts`"})
