"""Samplers, which turn seeds into images, and their cost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from multiscale.core import intact, models
from multiscale.core.device import autocast, cast_weights, default_device, layout_of, placed, resolve_precision
from multiscale.core.pixels import to_pixels
from multiscale.core.settings import Sampled

Net = TypeVar("Net", bound=nn.Module)
Trace = Callable[[str, Tensor], None]  # (caption, images in [0, 1] of any resolution): called after each step


class Sampler(Protocol):
    """Turns seeds and labels into images; image k depends on seeds[k] and labels[k] alone.

    labels (N,): what a `Conditioner` takes, the index of a class or the row of a prompt.
    """

    shows: str  # what the traced steps show
    networks: dict[str, nn.Module]

    def __call__(self, seeds: list[int], labels: Tensor, trace: Trace | None = None) -> Tensor:
        """Images (N, C, H, H) in [0, 1]."""


class NetworkSampler:
    """Base of samplers: holds frozen networks on a device, in a precision ('auto', 'fp32', 'bf16').

    Subclasses define `images`.
    """

    shows = "from noise to image"

    def __init__(self, networks: Mapping[str, nn.Module], precision: str):
        self.device = default_device()
        self.precision = resolve_precision(precision, self.device)
        self.networks = {name: self.placed(net) for name, net in networks.items()}

    def placed(self, net: Net) -> Net:
        """A network in evaluation mode, frozen, on the device: no image depends on the others in its batch."""
        net = cast_weights(net.eval().requires_grad_(False), self.precision)
        return placed(net, self.device, layout_of(net))

    @torch.inference_mode()
    def __call__(self, seeds: list[int], labels: Tensor, trace: Trace | None = None) -> Tensor:
        """Images (N, C, H, H) in [0, 1]."""
        with autocast(self.precision, self.device):
            return self.images(seeds, labels.to(self.device), trace)

    def images(self, seeds: list[int], labels: Tensor, trace: Trace | None) -> Tensor:
        """Images (N, C, H, H) in [0, 1] for labels (N,) on the device."""
        raise NotImplementedError


def generate(sampler: Sampler, seeds: list[int], labels: Tensor, batch: int) -> Iterator[Tensor]:
    """Yields batches of uint8 images (n, C, H, H) in the order of the seeds.

    Every batch has the same size, the last one being padded: matrix kernels may round differently for other sizes, and
    a seed must give the same pixels in any batch.
    """
    for start in range(0, len(seeds), batch):
        part = seeds[start : start + batch]
        fill = batch - len(part)
        padded = part + part[-1:] * fill
        chosen = torch.cat([labels[start : start + batch], labels[start + len(part) - 1].repeat(fill)])
        yield to_pixels(sampler(padded, chosen))[: len(part)]


def count_calls(sampler: Sampler, labels: Tensor) -> dict[str, float]:
    """Evaluations of each network for one image; a guided step counts two, whether batched or not."""
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
    """Floating-point operations for one image, over all scales and steps; a multiply-add counts two."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        sampler([0], labels[:1])
    return int(counter.get_total_flops())


def load(folder: Path, settings: Sampled | None = None, precision: str = "auto") -> Sampler:
    """The sampler of the trained method in a folder, models/METHOD.

    settings: the method's section of an experiment; None takes the default solvers. Raises ForeignModel for a folder
    without trained parts, or with parts of several methods.
    """
    from multiscale import methods
    from multiscale.networks import autoencoder

    parts = parts_in(folder)
    intact.check(*parts)
    kind = models.about(parts[0])["kind"]
    if kind not in methods.names() or any(models.about(part)["kind"] != kind for part in parts):
        allowed = f"parts of one method ({', '.join(methods.names())})"
        raise models.ForeignModel(f"{folder}: kind: {kind!r} is not allowed; allowed: {allowed}")
    section = settings or methods.settings(kind).METHOD(kind=kind)
    sampler: Sampler = methods.sampler(kind).load_sampler(parts, section, autoencoder.codec_of(parts[0]), precision)
    return sampler


def parts_in(folder: Path) -> list[Path]:
    """The folders of a method's trained parts. Raises ForeignModel where there are none."""
    parts = sorted(path.parent for path in Path(folder).glob(f"[!.]*/{models.CONFIG}"))
    if not parts:
        raise models.ForeignModel(f"{folder}: holds no trained parts; allowed: the folder of a method, models/METHOD")
    return parts
