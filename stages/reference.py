"""Extracts the features of the real training images once, into data/reference: what methods are measured against."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors.torch import save_file
from torch import nn

from multiscale import features
from multiscale.core.device import default_device, set_threads
from multiscale.core.storage import atomic_folder
from stages.common import settings
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


def main() -> None:
    section: Evaluate = settings.load("evaluate").evaluate
    set_threads()
    net, distance_layer, _ = extractor(section)
    table = pixel_table("train")
    count = min(section.reference_images or len(table), len(table))
    for key, most in (("kid_subset_size", count), ("prc_neighborhood", count - 1)):
        if (given := getattr(section, key)) > most:
            raise settings.refuse(settings.EXPERIMENT, f"evaluate.{key}", given, f"at most {most} (training images)")
    rows = torch.arange(count) * len(table) // count  # evenly over the set, which may be sorted by class
    with progress("reference", count) as reach:
        found = features.extract(
            net, lambda start, stop: table[rows[start:stop]]["pixels"], count, section.batch, reach
        )
    digest = hashlib.sha256(found[distance_layer].numpy().tobytes()).hexdigest()[:16]
    with atomic_folder(REFERENCE) as folder:
        save_file({"distance": found[distance_layer]}, folder / "features.safetensors")
        about = {"extractor": section.extractor, "n": count, "split": "train", "reference": digest}
        (folder / "reference.json").write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    command(main, __doc__)
