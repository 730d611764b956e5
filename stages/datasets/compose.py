"""Pictures of two digits with a caption: 'a seven above a three', 'a four left of a nine', 'two ones'.

A picture shows one digit above another, or one to the left of another. Its content is (arrangement, first digit, second
digit), its label the number of the content, row-major in FACTORS, and its caption one of the sentences that describe
the content. Each 200 pictures of a split in a row have every content once, in an order of their own, so that a part of
the split at any stride is like the whole. A picture depends on the split, its number and the digits of the split alone.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from itertools import product

import numpy as np
import torch
from PIL import Image

from multiscale.core.streams import generator

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ABOVE, BESIDE = range(2)
FACTORS = (2, len(NAMES), len(NAMES))  # arrangements, first digits (above or left), second digits
SMALLEST, LARGEST = 0.38, 0.44  # height or width of a digit, in shares of the picture
ALONG, ACROSS = 0.03, 0.1  # how far a digit lies from the middle of its half, at most: in the pair's direction, across


def captions(arrangement: int, first: int, second: int) -> list[str]:
    """The sentences that describe a content; the first one names it."""
    one, other = (f"{'an' if NAMES[digit] == 'eight' else 'a'} {NAMES[digit]}" for digit in (first, second))
    if arrangement == ABOVE:
        return [f"{one} above {other}"]
    both = [f"two {NAMES[first]}{'es' if NAMES[first].endswith('x') else 's'}"] if first == second else []
    return [f"{one} left of {other}", *both]


def content(label: int) -> tuple[int, int, int]:
    """The arrangement, first digit and second digit of a label."""
    arrangement, first, second = np.unravel_index(label, FACTORS)
    return int(arrangement), int(first), int(second)


def names() -> list[str]:
    """The names of the contents, in the order of their labels."""
    return [captions(*each)[0] for each in product(*map(range, FACTORS))]


def label_of(split: str, index: int) -> int:
    """The label of a picture."""
    block, place = divmod(index, math.prod(FACTORS))
    order = torch.randperm(math.prod(FACTORS), generator=generator(0, f"pairs/{split}/contents", block))
    return int(order[place])


def described(split: str, index: int) -> tuple[int, str]:
    """The label of a picture, and one of the sentences that describe its content."""
    label = label_of(split, index)
    sentences = captions(*content(label))
    chosen = torch.randint(len(sentences), (), generator=generator(0, f"pairs/{split}/caption", index))
    return label, sentences[int(chosen)]


class Composer:
    """Composes the pictures of one split from its digits, pairs of class and pixels uint8 (h, w) on black.

    Each class needs a digit. The pictures have the size `resolution`.
    """

    def __init__(self, split: str, digits: Iterable[tuple[int, np.ndarray]], resolution: int):
        self.split, self.resolution = split, resolution
        self.of_class: dict[int, list[np.ndarray]] = defaultdict(list)
        for label, pixels in digits:
            self.of_class[label].append(tight(pixels))

    def pixels(self, index: int) -> np.ndarray:
        """The pixels uint8 (H, H) of the picture `index` of the split."""
        draws = generator(0, f"pairs/{self.split}", index)
        arrangement, *pair = content(label_of(self.split, index))
        canvas = np.zeros((self.resolution, self.resolution), np.uint8)
        for half, digit in zip((0.25, 0.75), pair):
            same = self.of_class[digit]
            chosen = same[int(torch.randint(len(same), (), generator=draws))]
            size, along, across = torch.rand(3, generator=draws).tolist()
            side = round(self.resolution * (SMALLEST + (LARGEST - SMALLEST) * size))
            centre = (half + ALONG * (2 * along - 1), 0.5 + ACROSS * (2 * across - 1))
            put(canvas, fitted(chosen, side), centre if arrangement == ABOVE else centre[::-1])
        return canvas


def tight(pixels: np.ndarray) -> np.ndarray:
    """The smallest rectangle that holds all ink."""
    rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def fitted(pixels: np.ndarray, side: int) -> np.ndarray:
    """The pixels resized, with their proportions, to a longer edge of `side`."""
    scale = side / max(pixels.shape)
    height, width = (max(1, round(edge * scale)) for edge in pixels.shape)
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR))


def put(canvas: np.ndarray, pixels: np.ndarray, centre: tuple[float, float]) -> None:
    """Draws pixels (h, w) into a canvas (H, H), their centre (row, column) in shares of H."""
    (top, height), (left, width) = (
        (min(max(0, round(place * len(canvas) - edge / 2)), len(canvas) - edge), edge)
        for place, edge in zip(centre, pixels.shape)
    )
    area = canvas[top : top + height, left : left + width]
    np.maximum(area, pixels, out=area)
