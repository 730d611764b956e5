"""The memory that a training needs, estimated before its first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from multiscale.core.device import autocast, resolve_precision
from multiscale.core.settings import Bad
from multiscale.training.operations import steps_of, unchanged
from multiscale.training.part import Part, Training, let_through

FEW = (2, 4)  # images that are tried
MOMENTS = {"adamw": 2, "muon": 1}  # kept of a weight, at least
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Need:
    """Bytes that one worker needs at least."""

    states: int
    """of weights, gradients, moments of the optimiser and the moving average"""
    activations: int
    """of what a pass keeps for its backward pass; 0: not known, as blocks are recomputed or sharded"""


def need(part: Part, training: Training, device: torch.device, workers: int = 1, sharded: bool = False) -> Need:
    """What a training needs; activations are those of few images, in proportion. The part is left as it was."""
    nets = [*part.networks.values(), *part.frozen.values()]
    weights = sum(_bytes(x) for net in nets for x in (*net.parameters(), *net.buffers()))
    trained = {name: sum(p.numel() for p in net.parameters() if p.requires_grad) for name, net in part.networks.items()}
    kept = sum(trained.values()) * (1 + MOMENTS[training.optimizer]) + trained[part.main]
    states = weights + FLOAT * kept
    if sharded:
        return Need(states // workers, 0)
    if training.recompute:
        return Need(states, 0)
    images = training.microbatch or training.batch // workers
    return Need(states, activations(part, resolve_precision(training.precision, device), images, device))


def activations(part: Part, precision: str, images: int, device: torch.device) -> int:
    """Bytes that a pass of so many images keeps for its backward pass: the most of all that the part may do in a step.

    What does not grow with the images, such as weights in bf16, is told apart by two passes of few images.
    """
    nets = [*part.networks.values(), *part.frozen.values()]
    for net in nets:
        net.to(device)
    trained = {name: [p for p in net.parameters() if p.requires_grad] for name, net in part.networks.items()}
    kept: list[Mapping[tuple[str, str], int]] = []
    with unchanged(nets):
        for count in FEW:
            batch = {key: x.to(device) for key, x in part.data[torch.arange(count) % len(part.data)].items()}
            seen: dict[tuple[str, str], int] = {}
            for draws, _ in steps_of(part, getattr(part, "cycle", 1), count, device):
                for name in part.turns(draws.step):
                    if (way := (name, str(draws.given))) not in seen:
                        let_through(trained, name)
                        found = _Blocks(nets)
                        with saved_tensors_hooks(found.keep, lambda x: x), autocast(precision, device):
                            part.loss(name, part.networks, batch, draws)
                        seen[way] = found.bytes
            kept.append(seen)
    few, more = FEW
    return int(max(first + (kept[1][way] - first) / (more - few) * (images - few) for way, first in kept[0].items()))


def check(found: Need, part: Part, training: Training, free: int) -> None:
    """Raises Bad where a training needs more than the bytes that are free."""
    total = found.states + found.activations
    if total <= free:
        return
    activations = f", activations {found.activations / 1e9:.3g} GB" if found.activations else ""
    raise Bad(
        "training.batch",
        training.batch,
        f"what fits: {part.name} needs at least {total / 1e9:.3g} GB (weights, gradients, moments and average "
        f"{found.states / 1e9:.3g} GB{activations}) and {free / 1e9:.3g} GB are free; a smaller batch or network, "
        "training.microbatch, training.recompute, or run.parallel: fsdp on several GPUs",
    )


def free(device: torch.device, nets: Sequence[nn.Module]) -> int:
    """Bytes on the device that are free, or hold weights of the networks."""
    own = sum(_bytes(p) for net in nets for p in net.parameters() if p.device.type == device.type)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + own
    return int(psutil.virtual_memory().available) + own


class _Blocks:
    """The memory of what is saved for the backward pass, each block once and weights not at all."""

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        self.weights = {p.untyped_storage().data_ptr() for net in nets for p in net.parameters()}
        self.held: dict[int, int] = {}

    def keep(self, x: Tensor) -> Tensor:
        """Takes note of a tensor that is saved."""
        storage = x.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.held[storage.data_ptr()] = storage.nbytes()
        return x

    @property
    def bytes(self) -> int:
        """Of all of them."""
        return sum(self.held.values())


def _bytes(x: Tensor) -> int:
    return x.numel() * x.element_size()
