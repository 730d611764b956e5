"""Extracts the reference that methods are measured against, into data/reference.

It holds features of the training images and of the test split, features of the training images by the second extractor,
and small versions of all training images for the detection of copies.
"""

from __future__ import annotations

from stages.common.harness import command

if __name__ == "__main__":  # first: the imports below take seconds
    command(__doc__)

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from multiscale.core import intact
from multiscale.core.device import default_device
from multiscale.core.storage import Table, sealed_folder, write_json
from multiscale.evaluation import features, memorisation
from stages.cluster import Pool, pool
from stages.common import enough, images
from stages.common.errors import BadInput, refuse
from stages.common.harness import progress, tell
from stages.common.images import count, evenly, pixel_table
from stages.common.paths import EXPERIMENT, IMAGES, REFERENCE
from stages.schema import Experiment


def extractor(name: str, given: str | None) -> nn.Module:
    """An extractor, with the weights file `given` for Inception. Raises BadInput without weights."""
    weights = Path(given) if given else None
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

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The features of uint8 images (n, C, H, W): for distances, and for the Inception Score."""
        return features.extract(self.net, images)


def extract(
    title: str, workers: Pool, fetch: Callable[[slice], Tensor], count: int, batch: int
) -> tuple[Tensor, Tensor]:
    """`Extractor.extract` of `count` images; fetch(rows) returns a batch of them."""
    batches = ((fetch(slice(start, min(start + batch, count))),) for start in range(0, count, batch))
    found = []
    with progress(title, count) as reach:
        for pair in workers.map("extract", batches):
            found.append(pair)
            reach(len(found) * batch)
    distance, logits = (torch.cat(layer) for layer in zip(*found))
    return distance, logits


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
    section, batch_size = params.evaluate, params.run.batch
    with pool("reference", params.run, partial(Extractor, section.extractor, section.weights)) as workers:
        table = pixel_table("train")
        enough.check_reference(params, len(table))
        chosen = min(section.reference_images or len(table), len(table))
        rows = evenly(len(table), chosen)  # the dataset may be sorted by class
        real = lambda batch: table[rows[batch]]["pixels"]  # noqa: E731
        tensors = {"real": extract("reference", workers, real, chosen, batch_size)[0]}
        if count("test") > 1:
            images.check("test")
            test = pixel_table("test")
            held_out = lambda batch: test[batch]["pixels"]  # noqa: E731
            tensors["test"] = extract("reference, test split", workers, held_out, len(test), batch_size)[0]
    if name := section.second_extractor:
        with pool(f"reference, {name}", params.run, partial(Extractor, name, section.weights)) as workers:
            tensors["second"] = extract(f"reference, {name}", workers, real, chosen, batch_size)[0]
    tell("reference", "making images small, to find copies of them")
    copies = {"training": small(table)}
    if "test" in tensors:
        distances, _ = memorisation.nearest(small(test), copies["training"])
        copies["held_out_ratios"] = memorisation.ratios(distances)
    about = {
        "extractor": section.extractor,
        "second_extractor": section.second_extractor,
        "n": chosen,
        "split": "train",
        "reference": digest(tensors["real"]),
        "n_test": len(tensors.get("test", ())),
        "test": digest(tensors["test"]) if "test" in tensors else None,
    }
    with sealed_folder(REFERENCE) as folder:
        save_file(tensors, folder / "features.safetensors")
        save_file(copies, folder / "copies.safetensors")
        write_json(folder / "reference.json", about)
