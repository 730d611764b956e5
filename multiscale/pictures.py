"""Pictures: a labelled grid of samples, and a strip of images at the steps of a sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

INK, PAPER, QUIET = (20, 20, 20), (255, 255, 255), (110, 110, 110)
GAP = 4
LONGEST = 24  # characters of a heading: a longer name of a class would move the columns apart


def to_image(pixels: Tensor, zoom: int) -> Image.Image:
    """uint8 (C, H, W) -> an RGB picture enlarged `zoom` times."""
    array = pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(array).resize((array.shape[1] * zoom, array.shape[0] * zoom), Image.Resampling.NEAREST)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _width(text: str, size: int) -> int:
    return round(_font(size).getlength(text))


def _short(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def grid(pixels: Tensor, columns: int, headings: list[str], title: str, span: int = 1) -> Image.Image:
    """uint8 images (N, C, H, W), row by row, with a title, and a heading above every `span` columns, wide enough."""
    zoom = max(1, 64 // pixels.shape[-1])
    side, top = pixels.shape[-1] * zoom, 52
    shown = [_short(heading) for heading in headings[: columns // span]]
    room, widest = span * (side + GAP) - GAP, max((_width(heading, 13) for heading in shown), default=0)
    cell = side if widest <= room else side + math.ceil((widest + 2 * GAP - room) / span)
    step, down = cell + GAP, side + GAP
    rows = -(-len(pixels) // columns)
    width = max(columns * step, _width(title, 16) + GAP) + GAP
    sheet = Image.new("RGB", (width, top + rows * down), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 6), title, INK, _font(16))
    for index, heading in enumerate(shown):
        middle = GAP + index * span * step + (span * step - GAP) / 2
        draw.text((middle, top - 12), heading, QUIET, _font(13), anchor="mm")
    for index, image in enumerate(pixels):
        row, column = divmod(index, columns)
        sheet.paste(to_image(image, zoom), (GAP + column * step + (cell - side) // 2, top + row * down))
    return sheet


def captioned(pixels: Tensor, captions: Sequence[str], columns: int, title: str) -> Image.Image:
    """uint8 images (N, C, H, W), row by row, with a title, and under each image its caption, as long as it may be."""
    zoom = max(1, 96 // pixels.shape[-1])
    side, top = pixels.shape[-1] * zoom, 34
    texts = [_wrapped(caption, side, 12) for caption in captions]
    starts = range(0, len(pixels), columns)
    line = 15
    heights = [side + GAP + line * max(len(text) for text in texts[start : start + columns]) for start in starts]
    width = max(columns * (side + 2 * GAP), _width(title, 16) + GAP) + GAP
    sheet = Image.new("RGB", (width, top + sum(heights) + GAP * len(heights)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 6), title, INK, _font(16))
    for start, height in zip(starts, heights):
        for column, (image, text) in enumerate(zip(pixels[start : start + columns], texts[start : start + columns])):
            left = GAP + column * (side + 2 * GAP)
            sheet.paste(to_image(image, zoom), (left, top))
            for row, words in enumerate(text):
                draw.text((left + side / 2, top + side + GAP + line * row), words, QUIET, _font(12), anchor="ma")
        top += height + GAP
    return sheet


def _wrapped(text: str, room: int, size: int) -> list[str]:
    """The lines of a text no wider than `room` pixels, but for a longer word."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if lines[-1] and _width(longer, size) > room:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def of_classes(
    pixels: Tensor, labels: Tensor | None, rows: int, columns: int, title: str, names: Sequence[str] = ()
) -> Image.Image:
    """A grid of uint8 images (N, C, H, W), one class a column: the first images of the first classes.

    names: of the classes, in the order of their labels. Few classes get several columns each, as far as their images
    fill them; places that a class cannot fill stay empty. Without labels, and where there are more classes than columns
    and too few images of each, images are laid out row by row, in the order of their classes.
    """
    kinds = [] if labels is None else labels.unique().tolist()
    of_class = [torch.nonzero(labels == kind).flatten() for kind in kinds]
    most = max(map(len, of_class), default=0)
    if labels is None or (len(kinds) > columns and most < rows):
        shown = torch.cat(of_class) if of_class else torch.arange(len(pixels))
        fitting = math.ceil(math.sqrt(len(pixels) * columns / rows))  # a smaller grid of the same form
        columns = max(1, min(columns, len(pixels), fitting))
        return grid(pixels[shown[: columns * rows]], columns, [], title)
    kinds, of_class = kinds[:columns], of_class[:columns]
    wide = min(columns // len(kinds), math.ceil(most / rows))  # columns of a class
    high = min(rows, math.ceil(most / wide))
    places = torch.full((len(kinds), high * wide), -1)
    for place, mine in zip(places, of_class):
        place[: len(mine)] = mine[: high * wide]
    shown = places.view(len(kinds), high, wide).transpose(0, 1).flatten()
    chosen = pixels[shown]
    chosen[shown < 0] = PAPER[0]
    plain = [f"class {kind}" if len(kinds) <= 6 else str(kind) for kind in kinds]
    headings = [names[kind] for kind in kinds] if names else plain
    return grid(chosen, len(kinds) * wide, headings, f"{title}, a class a column" if wide == 1 else title, wide)


def strip(frames: list[tuple[str, Tensor]], title: str, names: Sequence[str] = ()) -> Image.Image:
    """Frames (caption, uint8 (n, C, h, h)) from left to right, all at the same zoom; names: to the left of their rows.

    There are as many rows for each name, which stands in the middle of them.
    """
    full = max(images.shape[-1] for _, images in frames)
    zoom = max(1, 96 // full)
    cell = max(full * zoom, *(_width(caption, 12) + 2 * GAP for caption, _ in frames))
    step, across = full * zoom + GAP, cell + GAP
    count, top = len(frames[0][1]), 34
    shown = [_short(name) for name in names]
    margin = GAP + max((_width(name, 13) + GAP for name in shown), default=0)
    width = max(margin + len(frames) * across, _width(title, 16) + 2 * GAP)
    sheet = Image.new("RGB", (width, top + count * step + 22), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 6), title, INK, _font(16))
    high = count // max(1, len(shown)) * step  # SSD shows an image in two rows
    for index, name in enumerate(shown):
        draw.text((GAP, top + index * high + (high - GAP) / 2), name, QUIET, _font(13), anchor="lm")
    for column, (caption, images) in enumerate(frames):
        for row, image in enumerate(images):
            picture = to_image(image, zoom)
            left, down = (cell - picture.width) // 2, (full * zoom - picture.height) // 2
            sheet.paste(picture, (margin + column * across + left, top + row * step + down))
        draw.text((margin + column * across + cell / 2, sheet.height - 12), caption, QUIET, _font(12), anchor="mm")
    return sheet
