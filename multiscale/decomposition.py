"""What the parts of a method train on: arrays made of the training images or their latents, block by block.

Each method's folder has a module `decomposition` with `decompose(section, source) -> Decomposition`.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from torch import Tensor

from multiscale.core.storage import Table

Shapes = dict[str, tuple[type, tuple[int, ...]]]  # of all images: name -> (numpy's type, (N, ...))


class Source(Protocol):
    """The dataset that a decomposition is made of."""

    def pixels(self) -> Table:
        """The training images: pixels uint8 (N, C, H, H) and label (N,)."""
        ...

    def latents(self, side: int) -> Table:
        """Their latents when downsampled to a side in pixels: mean (N, c, h, h) and label (N,)."""
        ...

    def statistics(self, side: int) -> dict[str, Any]:
        """Of these latents: shift and scale of each channel, ..."""
        ...


class Decomposition(Protocol):
    """A decomposition of all training images."""

    count: int  # images
    shapes: Shapes
    side: int | None  # of the latents that it is made of, whose autoencoder decodes what is trained on it; None: pixels

    def block(self, rows: slice) -> dict[str, Tensor]:
        """The arrays of `shapes` of some images, and their labels."""
        ...

    def statistics(self, made: Table) -> dict[str, Any] | None:
        """What networks and samplers need to know of all images, from the arrays as they were written."""
        ...


def of_images(count: int, shapes: dict[str, tuple[int, ...]], kind: type = np.float32) -> Shapes:
    """The shapes of all images from those of one."""
    return {name: (kind, (count, *shape)) for name, shape in shapes.items()}
