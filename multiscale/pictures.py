"""Pictures: a labelled grid of samples, and a strip of images at the steps of a sampler."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

INK, PAPER, QUIET = (20, 20, 20), (255, 255, 255), (110, 110, 110)
GAP = 4


def to_image(pixels: Tensor, zoom: int) -> Image.Image:
    """uint8 (C, H, W) -> an RGB picture enlarged `zoom` times."""
    array = pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array).resize((array.shape[1] * zoom, array.shape[0] * zoom), Image.Resampling.NEAREST)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def grid(pixels: Tensor, columns: int, headings: list[str], title: str) -> Image.Image:
    """uint8 images (N, C, H, W), row by row, with a title and a heading above each column."""
    resolution = pixels.shape[-1]
    zoom = max(1, 64 // resolution)
    step, top = resolution * zoom + GAP, 52
    rows = -(-len(pixels) // columns)
    sheet = Image.new("RGB", (columns * step + GAP, top + rows * step), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 6), title, INK, _font(16))
    for column, heading in enumerate(headings[:columns]):
        draw.text((GAP + column * step + resolution * zoom / 2, top - 12), heading, QUIET, _font(13), anchor="mm")
    for index, image in enumerate(pixels):
        row, column = divmod(index, columns)
        sheet.paste(to_image(image, zoom), (GAP + column * step, top + row * step))
    return sheet


def of_classes(pixels: Tensor, labels: Tensor | None, rows: int, columns: int, title: str) -> Image.Image:
    """A grid of uint8 images (N, C, H, W), one class a column: the first images of the first classes.

    Places that a class cannot fill stay empty. Without labels, images are laid out row by row.
    """
    if labels is None:
        return grid(pixels[: columns * rows], columns, [], title)
    found = labels.unique()[:columns].tolist()
    of_class = [torch.nonzero(labels == c).flatten()[:rows] for c in found]
    shown = torch.nn.utils.rnn.pad_sequence(of_class, padding_value=-1).flatten()
    chosen = pixels[shown]
    chosen[shown < 0] = PAPER[0]
    headings = [f"class {c}" if len(found) <= 6 else str(c) for c in found]
    return grid(chosen, len(found), headings, f"{title}, a class a column")


def strip(frames: list[tuple[str, Tensor]], title: str) -> Image.Image:
    """Frames (caption, uint8 (n, C, h, h)) from left to right, all at the same zoom."""
    full = max(images.shape[-1] for _, images in frames)
    zoom = max(1, 96 // full)
    cell = max(full * zoom, *(round(_font(12).getlength(caption)) + 2 * GAP for caption, _ in frames))
    step, across = full * zoom + GAP, cell + GAP
    count, top = len(frames[0][1]), 34
    width = max(len(frames) * across, round(_font(16).getlength(title)) + GAP) + GAP
    sheet = Image.new("RGB", (width, top + count * step + 22), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 6), title, INK, _font(16))
    for column, (caption, images) in enumerate(frames):
        for row, image in enumerate(images):
            picture = to_image(image, zoom)
            left, down = (cell - picture.width) // 2, (full * zoom - picture.height) // 2
            sheet.paste(picture, (GAP + column * across + left, top + row * step + down))
        draw.text((GAP + column * across + cell / 2, sheet.height - 12), caption, QUIET, _font(12), anchor="mm")
    return sheet
