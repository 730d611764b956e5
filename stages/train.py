"""Trains one part of one method, and writes its averaged weights to models/METHOD/PART.

A part with a `source` is fetched: the network of a published model, from a folder or from the Hub at a revision.
"""

from __future__ import annotations

from stages.common.harness import command

if __name__ == "__main__":  # first: the imports below take seconds
    command(__doc__, {"part": "a key of `parts`"})

from functools import partial
from pathlib import Path

from multiscale import methods
from multiscale.core import intact
from multiscale.core.settings import Fetched
from multiscale.core.storage import sealed_folder
from stages.common import codec, fetch, fitting, texts
from stages.common.errors import refuse
from stages.common.paths import DECOMPOSED, MODELS
from stages.schema import Experiment
from stages.schema import Part as PartSection

FILES = [f"{folder}/*.{kind}" for folder in ("transformer", "unet") for kind in ("json", "safetensors")]


def section_of(part: str, params: Experiment) -> PartSection | Fetched:
    """The section of a part."""
    if part not in params.parts:
        raise refuse("train", "PART", part, f"one of {', '.join(params.parts)}")
    return params.parts[part]


def publish(part: str, section: Fetched) -> None:
    """Writes the weights of a published model into models/METHOD/PART."""
    source, dataset = Path(section.source), DECOMPOSED / section.dataset
    if not source.exists():
        key = f"parts.{part}.source"
        source = fetch.snapshot(section.source, str(section.revision), key, FILES)
    intact.check(dataset)
    with sealed_folder(MODELS / section.method / part) as folder:
        methods.parts(section.kind).publish(section, source, dataset, folder)
        codec.carry(dataset, folder)
        texts.carry(dataset, folder)


def job(part: str, params: Experiment) -> fitting.Job:
    """The training of one part of the experiment."""
    section = section_of(part, params)
    if isinstance(section, Fetched):
        raise refuse("train", "PART", part, "a part without `source`, which is trained")
    folder = DECOMPOSED / section.dataset
    intact.check(folder)
    build = partial(methods.parts(section.kind).build_part, part, section, folder)
    return fitting.part_job(part, build, section, params, [folder], f"train-{section.kind}")


def main(params: Experiment, part: str) -> None:
    section = section_of(part, params)
    if isinstance(section, Fetched):
        publish(part, section)
    else:
        fitting.train(job(part, params), params.run)
