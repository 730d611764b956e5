"""Extracts the reference against which methods are measured, into data/reference.

It holds features of the training images (or of those that evaluate.reference names) and of the test split, features of
the former from the second extractor and DINOv2, the part of KID that depends on each set alone, which all methods
share, and small versions of all training images for the detection of copies.
"""

from __future__ import annotations

from stages.common.harness import command

if __name__ == "__main__":  # first: the imports below take seconds
    command(__doc__)

import hashlib
from collections.abc import Callable
from functools import partial

import torch
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file
from torch import Tensor

from multiscale.core import intact
from multiscale.core.storage import Table, sealed_folder, write_json
from multiscale.evaluation import memorisation, metrics
from stages.common import enough, images
from stages.common.cluster import pool
from stages.common.extraction import Extractor, extract, fetched, further
from stages.common.harness import tell
from stages.common.images import count, evenly, pixel_table
from stages.common.paths import IMAGES, REFERENCE
from stages.datasets import references
from stages.schema import Experiment


def small(table: Table) -> Tensor:
    """`memorisation.small` of all images of a table, read block by block."""
    starts = range(0, len(table), memorisation.BLOCK)
    return torch.cat([memorisation.small(table[slice(i, i + memorisation.BLOCK)]["pixels"]) for i in starts])


def digest(values: Tensor) -> str:
    """A digest that identifies the reference in every row of the leaderboard."""
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()[:16]


def main(params: Experiment) -> None:
    intact.check(IMAGES)
    images.check("train")
    section, batch_size, given = params.evaluate, params.run.batch, references.of(params)
    with pool("reference", params.run, partial(Extractor, section.extractor, section.weights)) as workers:
        table = pixel_table("train")
        enough.check_reference(params, len(table))
        real, chosen = _images(params, given, table)
        pooled, _, *spatial = extract("reference", workers, real, chosen, batch_size)
        tensors = {"real": pooled}
        if spatial:
            tensors["spatial"] = spatial[0]
        if count("test") > 1:
            images.check("test")
            test = pixel_table("test")
            held_out = fetched(test, section.resolution)
            tensors["test"] = extract("reference, test split", workers, held_out, len(test), batch_size)[0]
    for key, name, weights in further(section):
        with pool(f"reference, {name}", params.run, partial(Extractor, name, weights)) as workers:
            tensors[key] = extract(f"reference, {name}", workers, real, chosen, batch_size)[0]
    tell("reference", "making images small, to find copies of them")
    copies = {"training": small(table)}
    if "test" in tensors:
        distances, _ = memorisation.nearest(small(test), copies["training"])
        copies["held_out_ratios"] = memorisation.ratios(distances)
    tell("reference", "comparing features with one another")
    about = {
        "within": {key: metrics.within(tensors[key]) for key in ("real", "test", "second") if key in tensors},
        "extractor": section.extractor,
        "second_extractor": section.second_extractor,
        "n": chosen,
        "split": None if given and given.count else "train",
        "reference": digest(tensors["real"]),
        "n_test": len(tensors.get("test", ())),
        "test": digest(tensors["test"]) if "test" in tensors else None,
    }
    if given:
        about["against"], about["statistics"] = given.name, bool(given.statistics)
    with sealed_folder(REFERENCE) as folder:
        save_file(tensors, folder / "features.safetensors")
        save_file(copies, folder / "copies.safetensors")
        write_json(folder / "reference.json", about)
        for layer, statistics in given.statistics.items() if given else ():
            save_numpy(statistics, folder / f"{layer}-statistics.safetensors")


def _images(params: Experiment, given: references.Given | None, table: Table) -> tuple[Callable[[slice], Tensor], int]:
    """The images of the reference, batch by batch, and how many there are."""
    section = params.evaluate
    if given and given.count:
        pictures, chosen = given, min(section.reference_images or given.count, given.count)
        return lambda batch: pictures.rows(torch.arange(chosen)[batch]), chosen
    chosen = min(section.reference_images or len(table), len(table))
    rows = evenly(len(table), chosen)  # the dataset may be sorted by class
    fetch = fetched(table, section.resolution)
    return lambda batch: fetch(rows[batch]), chosen
