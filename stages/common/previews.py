"""What a training has learnt so far, as a picture at each tenth of its budget: .scratch/previews/PART/latest.png.

The pictures decide no result, and no result depends on them: they are drawn from a copy of the averaged weights and the
noise of fixed seeds, and the random streams of the training stay where they are.
"""

from __future__ import annotations

import copy
import sys
import warnings
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import cast

import numpy as np
import torch
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from tqdm import tqdm

from multiscale import methods, pictures
from multiscale.core.models import TEXT
from multiscale.core.pixels import to_pixels
from multiscale.core.storage import Table, atomic_file
from multiscale.networks import autoencoder
from multiscale.networks.autoencoder import Codec
from multiscale.training.loop import TENTHS
from multiscale.training.parallel import first_worker
from multiscale.training.part import Part, Training
from stages.common.paths import PREVIEWS

WIDE = 8  # images in a row of a picture, one class a column


def observer(part: Part, training: Training, decomposition: Path | None, count: int) -> Observer | None:
    """Draws `count` images at each tenth; None with a count of 0, for a part that generates nothing, on other workers
    than the first.

    decomposition: that the part trains on, with the autoencoder that decodes it.
    """
    found = methods.preview(part.config.kind) if decomposition and count and first_worker() else None
    return Observer(found, part, training, decomposition, count) if found and decomposition else None


class Observer:
    """Called with the images seen and the averaged weights, draws what the part makes: always the same images."""

    def __init__(self, method: ModuleType, part: Part, training: Training, decomposition: Path, count: int):
        self.method, self.part, self.training, self.decomposition = method, part, training, decomposition
        self.net = copy.deepcopy(part.networks[part.main])  # as built: the training places, wraps and shards its own
        table = cast(Table, part.data)
        self.seeds, self.told = list(range(count)), False
        self.rows = table[of_each_class(torch.from_numpy(np.array(table.arrays["label"])), count)]

    def __call__(self, seen: int, weights: dict[str, Tensor]) -> None:
        """A picture is not worth a training: one that fails is a warning."""
        try:
            with torch.random.fork_rng(devices=[]):  # a method's networks may draw from torch's own stream
                self._draw(seen, weights)
        except Exception as error:
            warnings.warn(f"no picture of {self.part.name}: {type(error).__name__}: {error}", stacklevel=2)

    def images(self, weights: dict[str, Tensor]) -> Tensor:
        """uint8 images (N, C, H, H) that the part makes with these weights."""
        net = copy.deepcopy(self.net)
        net.load_state_dict(weights)
        sampler = self.method.sampler_of(self.part, net, self.rows, self._codec, self.training.precision)
        return to_pixels(sampler(self.seeds, self.rows["label"]))

    @cached_property
    def _codec(self) -> Codec:
        return autoencoder.codec_of(self.decomposition)

    def _draw(self, seen: int, weights: dict[str, Tensor]) -> None:
        name, budget = self.part.name, self.training.images
        seen = min(seen, budget)  # the last batch may go beyond
        title = f"{name} after {seen:,} of {budget:,} images"
        labels, about = self.rows["label"], PngInfo()
        about.add_text("Title", title)
        reads = (self.decomposition / TEXT).is_dir()  # then a label is no class
        labelled = len(labels.unique()) > 1 and getattr(self.part.config, "classes", True) and not reads
        rows, columns = -(-len(labels) // WIDE), min(len(labels), WIDE)
        sheet = pictures.of_classes(self.images(weights), labels if labelled else None, rows, columns, title)
        tenth, folder = TENTHS * seen // budget, PREVIEWS / name
        for old in folder.glob("[0-9]*.png"):
            if int(old.stem) > 100 * tenth // TENTHS:  # of an earlier training
                old.unlink()
        for file in (f"{100 * tenth // TENTHS:03}.png", "latest.png"):
            with atomic_file(folder / file) as temporary:
                sheet.save(temporary, "PNG", pnginfo=about)
        if not self.told:
            tqdm.write(f"what {name} has learnt so far: {folder / 'latest.png'}", file=sys.stderr)  # above the bar
            self.told = True


def of_each_class(labels: Tensor, count: int) -> Tensor:
    """`count` rows, one of each of the first eight classes in turn, from the labels (N,) of all rows."""
    kinds = labels.unique()[:WIDE]
    of_kind = [torch.nonzero(labels == kind).flatten() for kind in kinds]
    turns = (divmod(k, len(kinds)) for k in range(count))
    return torch.stack([of_kind[kind][turn % len(of_kind[kind])] for turn, kind in turns])
