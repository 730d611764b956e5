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
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors.numpy import save_file as save_numpy
from safetensors.torch import save_file
from torch import Tensor, nn

from multiscale.core import intact
from multiscale.core.device import default_device
from multiscale.core.storage import Table, sealed_folder, write_json
from multiscale.evaluation import features, memorisation, metrics
from stages.common import enough, images
from stages.common.cluster import Pool, pool
from stages.common.errors import BadInput, one_line, refuse
from stages.common.harness import progress, tell
from stages.common.images import count, evenly, pixel_table
from stages.common.paths import EXPERIMENT, IMAGES, REFERENCE
from stages.datasets import references
from stages.schema import Experiment
from stages.schema.data import Evaluate


def extractor(name: str, given: str | None) -> nn.Module:
    """An extractor, with the weights `given`: Inception's file, DINOv2's folder. Raises BadInput without weights."""
    weights = Path(given) if given else None
    if name == features.DINOV2:
        try:
            return features.create(name, weights, default_device())
        except (OSError, ValueError) as error:
            why = one_line(error)[:200]
            allowed = f"a folder with a DINOv2 as transformers saves it ({why})"
            raise refuse(EXPERIMENT, "evaluate.dinov2", given, allowed) from None
    key = "evaluate.weights"
    if weights:
        if not weights.exists():
            raise refuse(EXPERIMENT, key, given, "an existing weights file of the extractor")
        try:
            torch.load(weights, map_location="cpu", weights_only=True)  # the library would unpickle anything
        except Exception as error:
            first = str(error).splitlines()[0]
            raise BadInput(f"{EXPERIMENT}: {key}: {weights} is not a file of tensors alone: {first}") from None
    try:
        return features.create(name, weights, default_device())
    except (URLError, OSError) as error:
        folder = Path(torch.hub.get_dir(), "checkpoints")
        raise BadInput(
            f"{EXPERIMENT}: evaluate.extractor: the weights of {name} cannot be downloaded "
            f"({error}); put weights-inception-2015-12-05-6726825d.pth of torch-fidelity's releases into {folder}, "
            f"or name the file in {key}"
        ) from None


class Extractor:
    """One extractor on one worker."""

    def __init__(self, name: str, weights: str | None):
        self.net = extractor(name, weights)

    def extract(self, images: Tensor) -> tuple[Tensor, ...]:
        """The features of uint8 images (n, C, H, W), as `features.create` lists them: first those for distances."""
        return features.extract(self.net, images)


def extract(title: str, workers: Pool, fetch: Callable[[slice], Tensor], count: int, batch: int) -> tuple[Tensor, ...]:
    """`Extractor.extract` of `count` images; fetch(rows) returns a batch of them."""
    batches = ((fetch(slice(start, min(start + batch, count))),) for start in range(0, count, batch))
    found = []
    with progress(title, count) as reach:
        for layers in workers.map("extract", batches):
            found.append(layers)
            reach(len(found) * batch)
    return tuple(torch.cat(layer) for layer in zip(*found))


def fetched(table: Table, resolution: int | None) -> Callable[[slice | Tensor], Tensor]:
    """Fetches rows of a table as the extractors see them: at the protocol's resolution."""
    return lambda rows: references.resized(table[rows]["pixels"], resolution)


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


def further(section: Evaluate) -> Iterator[tuple[str, str, str | None]]:
    """The further extractors of a protocol: the name of their features, their own, and their weights."""
    if name := section.second_extractor:
        yield "second", name, section.weights
    if folder := section.dinov2:
        yield "dinov2", features.DINOV2, folder
