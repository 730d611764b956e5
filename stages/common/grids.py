"""The picture of a method's samples, or of images in their place."""

from __future__ import annotations

import torch
from PIL.Image import Image
from torch import Tensor

from multiscale import pictures
from multiscale.core.streams import generator
from stages.common.images import class_names, classes, has_captions
from stages.schema.data import Sample


def grid(pixels: Tensor, labels: Tensor, section: Sample, title: str, captions: list[str] | None = None) -> Image:
    """uint8 images (N, C, H, H) of labels (N,): a class a column, or with captions some, each over its caption.

    captions: of the images; None: the names of their classes, where the dataset has captions.
    """
    names, kinds = class_names(), classes()
    if captions or (has_captions() and names):
        order = torch.randperm(len(pixels), generator=generator(0, "grid"))
        shown = order[: section.grid_columns * section.grid_rows]
        under = [captions[row] if captions else names[labels[row]] for row in shown.tolist()]
        return pictures.captioned(pixels[shown], under, section.grid_columns, title)
    kind = labels if kinds > 1 else None
    return pictures.of_classes(pixels, kind, section.grid_rows, section.grid_columns, title, names if kinds > 1 else [])
