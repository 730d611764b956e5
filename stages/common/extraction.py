"""The features of images by the extractors of the protocol, with their weights, on the workers of a stage."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn

from multiscale.core.device import default_device
from multiscale.core.models import first_line
from multiscale.core.storage import Table
from multiscale.evaluation import features
from stages.common.cluster import Pool
from stages.common.errors import BadInput, one_line, refuse
from stages.common.harness import progress
from stages.common.paths import EXPERIMENT
from stages.datasets import references
from stages.schema.data import Evaluate


def further(section: Evaluate) -> Iterator[tuple[str, str, str | None]]:
    """The further extractors of a protocol: the name of their features, their own, and their weights."""
    if name := section.second_extractor:
        yield "second", name, section.weights
    if folder := section.dinov2:
        yield "dinov2", features.DINOV2, folder


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
            raise refuse(EXPERIMENT, key, given, f"a file of tensors alone ({first_line(error)})") from None
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
