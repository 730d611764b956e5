"""Extracts the features of the real training images once, into data/reference: what methods are measured against."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from multiscale import features
from multiscale.core.device import default_device, set_threads
from multiscale.core.storage import atomic_folder
from stages.common import settings
from stages.common.cluster import Pool, pool
from stages.common.harness import command, progress
from stages.common.images import pixel_table
from stages.common.paths import REFERENCE
from stages.schema import Evaluate


def extractor(section: Evaluate) -> tuple[nn.Module, str, str]:
    """The extractor of the protocol with its two layers. Raises BadInput where its weights are not to be had."""
    weights = Path(section.weights) if section.weights else None
    key = "evaluate.weights"
    if weights:
        if not weights.exists():
            raise settings.refuse(
                settings.EXPERIMENT, key, section.weights, "an existing weights file of the extractor"
            )
        try:
            torch.load(weights, map_location="cpu", weights_only=True)  # the library itself would unpickle anything
        except Exception as error:
            first = str(error).splitlines()[0]
            raise settings.BadInput(
                f"{settings.EXPERIMENT}: {key}: {weights} holds no plain weights: {first}"
            ) from None
    try:
        return features.create(section.extractor, weights, default_device())
    except (URLError, OSError) as error:
        folder = Path(torch.hub.get_dir(), "checkpoints")
        raise settings.BadInput(
            f"{settings.EXPERIMENT}: evaluate.extractor: the weights of {section.extractor} cannot be downloaded "
            f"({error}); put weights-inception-2015-12-05-6726825d.pth of torch-fidelity's releases into {folder}, "
            f"or name the file in {key}"
        ) from None


class Extractor:
    """The extractor on one worker."""

    def __init__(self, section: Evaluate):
        self.net, self.distance_layer, self.class_layer = extractor(section)

    def extract(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The two layers' features of uint8 images (n, C, H, W): those of distances, those of the Inception Score."""
        found = features.extract(self.net, images)
        return found[self.distance_layer], found[self.class_layer]


def extract(
    title: str, workers: Pool, fetch: Callable[[slice], Tensor], count: int, batch: int
) -> tuple[Tensor, Tensor]:
    """`Extractor.extract` of `count` images, which fetch(rows) gives batch by batch."""
    batches = ((fetch(slice(start, min(start + batch, count))),) for start in range(0, count, batch))
    found = []
    with progress(title, count) as reach:
        for pair in workers.map("extract", batches):
            found.append(pair)
            reach(len(found) * batch)
    distance, logits = (torch.cat(layer) for layer in zip(*found))
    return distance, logits


def main() -> None:
    params = settings.load("run", "evaluate")
    section: Evaluate = params.evaluate
    set_threads()
    with pool("reference", params.run, partial(Extractor, section)) as workers:
        table = pixel_table("train")
        count = min(section.reference_images or len(table), len(table))
        for key, most in (("kid_subset_size", count), ("prc_neighborhood", count - 1)):
            if (given := getattr(section, key)) > most:
                allowed = f"at most {most} (training images)"
                raise settings.refuse(settings.EXPERIMENT, f"evaluate.{key}", given, allowed)
        rows = torch.arange(count) * len(table) // count  # evenly over the set, which may be sorted by class
        found, _ = extract("reference", workers, lambda batch: table[rows[batch]]["pixels"], count, section.batch)
    digest = hashlib.sha256(found.numpy().tobytes()).hexdigest()[:16]
    with atomic_folder(REFERENCE) as folder:
        save_file({"distance": found}, folder / "features.safetensors")
        about = {"extractor": section.extractor, "n": count, "split": "train", "reference": digest}
        (folder / "reference.json").write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    command(main, __doc__)
