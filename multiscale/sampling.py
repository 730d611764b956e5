"""The one sampler protocol, from seeds to images, and what a sampler costs."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from multiscale.core.pixels import to_pixels

Trace = Callable[[str, Tensor], None]  # (caption, images in [0, 1] of any side): called after each step


class Sampler(Protocol):
    """Turns seeds and labels into images; image k depends on seeds[k] and labels[k] alone."""

    networks: dict[str, nn.Module]

    def __call__(self, seeds: list[int], labels: Tensor, trace: Trace | None = None) -> Tensor:
        """Images (N, C, H, H) in [0, 1]."""
        ...


def generate(sampler: Sampler, seeds: list[int], labels: Tensor, batch: int) -> Iterator[Tensor]:
    """Yields uint8 images (n, C, H, H), batch by batch in the order of the seeds.

    Every batch has the same size (the last one is filled up and cut), because matrix kernels may round differently
    for different sizes: so a seed gives the same pixels wherever it stands.
    """
    for start in range(0, len(seeds), batch):
        part = seeds[start : start + batch]
        fill = batch - len(part)
        padded = part + part[-1:] * fill
        chosen = torch.cat([labels[start : start + batch], labels[start + len(part) - 1].repeat(fill)])
        yield to_pixels(sampler(padded, chosen))[: len(part)]


def seconds_per_image(sampler: Sampler, batch: int, labels: Tensor, repeats: int) -> float:
    """Median wall time over repeats of a whole batch, after one warm-up, divided by its size."""
    labels = labels[:batch]
    seeds = list(range(batch))
    sampler(seeds, labels)
    spent = []
    for _ in range(repeats):
        _synchronise()
        started = time.perf_counter()
        to_pixels(sampler(seeds, labels))
        _synchronise()
        spent.append(time.perf_counter() - started)
    return statistics.median(spent) / batch


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def count_calls(sampler: Sampler, labels: Tensor) -> dict[str, float]:
    """Network evaluations an image needs, for each network: a guided step counts two, whether batched or not."""
    calls = dict.fromkeys(sampler.networks, 0.0)
    count = len(labels)

    def counter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            calls[name] += len(inputs[0]) / count

        return hook

    hooks = [net.register_forward_pre_hook(counter(name)) for name, net in sampler.networks.items()]
    try:
        sampler(list(range(count)), labels)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def flops_per_image(sampler: Sampler, labels: Tensor) -> int:
    """Floating-point operations (2 a multiply-add) of everything that makes one image, summed over scales and steps."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        sampler([0], labels[:1])
    return counter.get_total_flops()
