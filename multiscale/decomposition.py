"""Decompositions: the arrays that a method trains on, computed block by block from the training images or latents.

Each method's folder has a module `decomposition` with `decompose(section, source) -> Decomposition`.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from torch import Tensor

from multiscale.core.normalisation import Normalisation
from multiscale.core.storage import Table

Shapes = dict[str, tuple[type, tuple[int, ...]]]  # name -> (NumPy type, (N, ...))


class Source(Protocol):
    """The training images and their latents."""

    def pixels(self) -> Table:
        """Columns pixels, uint8 (N, C, H, H), and label (N,)."""

    def latents(self, resolution: int) -> Table:
        """Latents of the images downsampled to a resolution in pixels: mean (N, c, h, h) and label (N,)."""

    def normalisation(self, resolution: int) -> Normalisation:
        """The normalisation of these latents."""

    def captions(self, text: str) -> Tensor:
        """The row (N,) of each image's caption among the embeddings of a text encoder, a key of `text`."""


class Decomposition(Protocol):
    """A decomposition of all training images."""

    count: int  # images
    shapes: Shapes
    resolution: int | None  # of the latents that it was computed from; None: pixels

    def block(self, rows: slice) -> dict[str, Tensor]:
        """The arrays named in `shapes` for some of the images, and their labels."""

    def statistics(self, made: Table) -> dict[str, Any]:
        """What networks and samplers need to know of the whole dataset; `made` holds the arrays as written."""


def of_images(count: int, shapes: dict[str, tuple[int, ...]], kind: type = np.float32) -> Shapes:
    """Shapes for all images, given the shapes for one."""
    return {name: (kind, (count, *shape)) for name, shape in shapes.items()}
