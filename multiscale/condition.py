"""What conditions a network, class labels or the embeddings of prompts, in one type; an image is concatenated instead.

A network is called `network(x, t, *condition.given)`: with labels (N,), with the embeddings of prompts (N, L, D) and
pooled ones (N, P), or with nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from multiscale.core.models import EMBEDDINGS, TEXT
from multiscale.core.storage import Table
from multiscale.core.streams import Draws


@dataclass(frozen=True)
class Condition:
    """What N images are conditioned on: the tensors that a network is given after x and t, with a row for each image.

    given: one tensor of labels, two of prompts, none for a network without classes. null: the same for 'no class' or
    the empty prompt, in one row each; None for a network that knows no such thing.
    """

    given: tuple[Tensor, ...]
    null: tuple[Tensor, ...] | None

    def __len__(self) -> int:
        """N; 0 where nothing is given, which fits any number of images."""
        return len(self.given[0]) if self.given else 0

    def dropped(self, share: float, draws: Draws) -> Condition:
        """The null in the place of a share of the rows, for guidance; the same where there is no null."""
        if self.null is None:
            return self
        gone = draws.uniform("label") < share
        pairs = zip(self.null, self.given)
        given = tuple(torch.where(gone.view(-1, *[1] * (x.ndim - 1)), null, x) for null, x in pairs)
        return Condition(given, self.null)

    def with_null(self) -> Condition:
        """2N rows, the conditions and then N times the null. Raises ValueError where there is no null."""
        if self.null is None:
            raise ValueError("a condition without a null; allowed: with 'no class' or the empty prompt")
        pairs = zip(self.given, self.null)
        return Condition(tuple(torch.cat([x, null.expand_as(x)]) for x, null in pairs), self.null)

    def to(self, device: torch.device) -> Condition:
        """The same on a device."""
        null = None if self.null is None else tuple(x.to(device) for x in self.null)
        return Condition(tuple(x.to(device) for x in self.given), null)


class Conditioner(Protocol):
    """Makes the condition of an index (N,) of integers, on the device of the index."""

    def __call__(self, index: Tensor) -> Condition: ...


@dataclass(frozen=True)
class Classes:
    """The index is a class label 0..count-1, the label `count` is 'no class'; without classes nothing is given."""

    count: int

    def __call__(self, index: Tensor) -> Condition:
        return Condition((index,), (index.new_full((1,), self.count),)) if self.count else Condition((), None)


@dataclass(frozen=True)
class Prompts:
    """The index is a row of a table of embeddings, `prompt` (M, L, D) and `pooled` (M, P), in memory or mapped.

    null: the embeddings of the empty prompt, (1, L, D) and (1, P); None for a network that knows none.
    """

    table: Table
    null: tuple[Tensor, Tensor] | None

    def __call__(self, index: Tensor) -> Condition:
        rows = self.table[index.cpu()]
        return Condition((rows["prompt"], rows["pooled"]), self.null).to(index.device)


def conditioner_of(folder: Path, classes: int) -> Conditioner:
    """The conditioner that the folder of a decomposition or a model asks for: of its text, else of its classes.

    Row 0 of the text stands for no text.
    """
    path = folder / TEXT / EMBEDDINGS
    if not path.exists():
        return Classes(classes)
    table = Table.open(path, "prompt", "pooled")
    none = table[torch.zeros(1, dtype=torch.long)]
    return Prompts(table, (none["prompt"], none["pooled"]))
