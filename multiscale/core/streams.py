"""Stateless randomness: every draw is a function of (seed, stream name, index), so there is no state to save."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from multiscale.core import philox
from multiscale.core.device import CPU

Randomness = Literal["cpu", "device"]


def generator(seed: int, stream: str, index: int = 0) -> torch.Generator:
    """The generator of (seed, stream, index), on the CPU so that the numbers are the same on every device.

    torch seeds it by 32 bits: of 50,000 seeds of a stream, a pair starts alike in one case of four.
    """
    digest = hashlib.blake2b(f"{seed}/{stream}/{index}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def noise_of_seeds(seeds: list[int], stream: str, shape: tuple[int, ...], device: torch.device = CPU) -> Tensor:
    """Unit Gaussian noise (N, *shape) on a device; row k depends on seeds[k] and the stream alone.

    It is drawn on the CPU, so that it is the same on every device, while a GPU works on what it was given before.
    """
    noise = torch.empty(len(seeds), *shape, pin_memory=device.type == "cuda")  # else the copy waits for the GPU
    for row, seed in zip(noise, seeds):
        torch.randn(shape, generator=generator(seed, stream), out=row)
    return noise.to(device, non_blocking=True)


def classes_of_seeds(seeds: list[int], counts: Tensor) -> Tensor:
    """Random classes (N,), class c with probability counts[c] / sum(counts), counts (K,) being integers.

    Row k depends on seeds[k] and the counts alone.
    """
    total = int(counts.sum())
    places = torch.stack([torch.randint(total, (), generator=generator(seed, "class")) for seed in seeds])
    return torch.searchsorted(counts.cumsum(0), places, right=True)


@dataclass(frozen=True)
class Draws:
    """The random numbers of one training step, those of some rows of its global batch.

    They do not depend on the number of workers. With randomness 'cpu' each draws the numbers of the whole batch on the
    CPU and keeps its own rows: the same on every device. With 'device' it draws its own alone, on the device, where
    the numbers of a row follow from its place in the batch: the same on one kind of device.
    """

    seed: int
    stream: str
    step: int
    batch: int
    rows: slice
    device: torch.device
    randomness: Randomness = "cpu"

    def _generator(self, name: str) -> torch.Generator:
        return generator(self.seed, f"{self.stream}/{name}", self.step)

    def normal(self, name: str, *shape: int) -> Tensor:
        """Unit Gaussian noise (rows, *shape)."""
        if self.randomness == "device":
            count = math.prod(shape)
            return philox.normal(self._words(name, count + count % 2))[:, :count].view(-1, *shape)
        return torch.randn(self.batch, *shape, generator=self._generator(name))[self.rows].to(self.device)

    def uniform(self, name: str, *shape: int) -> Tensor:
        """Uniform numbers in [0, 1) (rows, *shape)."""
        if self.randomness == "device":
            return philox.uniform(self._words(name, math.prod(shape))).view(-1, *shape)
        return torch.rand(self.batch, *shape, generator=self._generator(name))[self.rows].to(self.device)

    def _words(self, name: str, count: int) -> Tensor:
        return philox.words_of(self.seed, f"{self.stream}/{name}", self.step, self.rows, count, self.device)

    def choice(self, name: str, count: int) -> int:
        """One integer in 0..count-1, the same on every worker."""
        return int(torch.randint(count, (), generator=self._generator(name)))


@dataclass(frozen=True)
class Held:
    """The noise of held-out images, the same at each validation and in each training.

    seeds: one of each image. levels: how noisy each is, (N,) in (0, 1). view: which way of seeing them a part takes,
    such as a resolution.
    """

    seeds: list[int]
    levels: Tensor
    view: int

    def normal(self, name: str, *shape: int) -> Tensor:
        """Unit Gaussian noise (N, *shape); that of an image depends on its seed and the name alone."""
        return noise_of_seeds(self.seeds, f"validation/{name}", shape, self.levels.device)


class Order:
    """The endless shuffled sequence of data rows; epoch e is the permutation drawn from (seed, stream, e)."""

    def __init__(self, seed: int, stream: str, length: int):
        self.seed, self.stream, self.length = seed, f"{stream}/order", length
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.long)

    def rows(self, start: int, count: int) -> Tensor:
        """The rows at positions start .. start+count-1 of the sequence, which may span epochs."""
        pieces, position, left = [], start, count
        while left:
            epoch, offset = divmod(position, self.length)
            if epoch != self._epoch:
                self._permutation = torch.randperm(self.length, generator=generator(self.seed, self.stream, epoch))
                self._epoch = epoch
            piece = self._permutation[offset : offset + left]
            pieces.append(piece)
            position, left = position + len(piece), left - len(piece)
        return torch.cat(pieces)
