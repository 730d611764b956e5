"""The memory that a training needs, estimated before its first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from multiscale.core.device import autocast, cast_weights, resolve_precision
from multiscale.core.settings import Bad
from multiscale.training.operations import all_kinds, steps_of, unchanged
from multiscale.training.part import Part, Training, let_through, trainable

FEW = (2, 4)  # images that are tried
MOMENTS = {"adamw": 2, "muon": 1}  # kept of a weight, at least
FLOAT = 4  # bytes


@dataclass(frozen=True)
class Need:
    """Bytes that one worker needs at least."""

    states: int
    """of weights, moments of the optimiser and the moving average"""
    gradients: int
    """of the network with the most: each loses them after its turn"""
    activations: int
    """of what a pass keeps for its backward pass; 0: not known, as networks are recomputed, compiled or sharded"""

    @property
    def total(self) -> int:
        """Of all that is there at one time: the activations go while the gradients come."""
        return self.states + max(self.gradients, self.activations)


def need(part: Part, training: Training, device: torch.device, workers: int = 1, sharded: bool = False) -> Need:
    """What a training needs; activations are those of few images, in proportion.

    The part is left as it was, but on the device, and what is frozen is cast as the training casts it.
    """
    precision = resolve_precision(training.precision, device)
    if not sharded:
        for net in part.frozen.values():
            cast_weights(net, precision)
    nets = [*part.networks.values(), *part.frozen.values()]
    weights = sum(_bytes(x) for net in nets for x in (*net.parameters(), *net.buffers()))
    trained = {name: sum(p.numel() for p in own) for name, own in trainable(part.networks).items()}
    states = weights + FLOAT * (sum(trained.values()) * MOMENTS[training.optimizer] + trained[part.main])
    gradients = FLOAT * max(trained.values())
    if sharded:
        return Need(states // workers, gradients // workers, 0)
    if training.recompute or training.compile:
        return Need(states, gradients, 0)
    share = max(1, training.batch // workers)
    images = min(training.microbatch or share, share)
    return Need(states, gradients, activations(part, precision, images, device))


def activations(part: Part, precision: str, images: int, device: torch.device) -> int:
    """Bytes that a pass of so many images keeps for its backward pass: the most of all that the part may do in a step.

    What does not grow with the images, such as weights in bf16, is told apart by two passes of few images. No pass has
    more images than are asked for.
    """
    nets = [*part.networks.values(), *part.frozen.values()]
    for net in nets:
        net.to(device)
    trained = trainable(part.networks)
    counts = FEW if images > max(FEW) else (images,)
    kept: list[Mapping[tuple[str, int, str], int]] = []
    with unchanged(nets):
        for count in counts:
            batch = {key: x.to(device) for key, x in part.data[torch.arange(count) % len(part.data)].items()}
            seen: dict[tuple[str, int, str], int] = {}
            for draws, _ in steps_of(part, all_kinds(part), count, device):
                for name in part.turns(draws.step):
                    if (way := (name, draws.step % part.cycle, str(draws.given))) not in seen:
                        let_through(trained, name)
                        found = _Blocks(nets)
                        with saved_tensors_hooks(found.keep, lambda x: x), autocast(precision, device):
                            part.loss(name, part.networks, batch, draws)
                        seen[way] = found.bytes
            kept.append(seen)
    few, more = kept[0], kept[-1]
    grown = (images - counts[0]) / max(1, counts[-1] - counts[0])
    return int(max(first + (more[way] - first) * grown for way, first in few.items()))


def check(found: Need, part: Part, training: Training, free: int) -> None:
    """Raises Bad where a training needs more than the bytes that are free."""
    if found.total <= free:
        return
    passing = "activations" if found.activations > found.gradients else "gradients"
    raise Bad(
        "training.batch",
        training.batch,
        f"what fits: {part.name} needs at least {found.total / 1e9:.3g} GB (weights, moments and average "
        f"{found.states / 1e9:.3g} GB, {passing} {(found.total - found.states) / 1e9:.3g} GB) and {free / 1e9:.3g} GB "
        "are free; a smaller batch or network, training.microbatch, training.recompute, or run.parallel: fsdp on "
        "several GPUs",
    )


def free(device: torch.device, nets: Sequence[nn.Module]) -> int:
    """Bytes on the device that are free, or hold weights of the networks."""
    own = sum(_bytes(p) for net in nets for p in net.parameters() if p.device.type == device.type)
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, of what was freed
        return torch.cuda.mem_get_info(device)[0] + kept + own
    return int(psutil.virtual_memory().available) + own


class _Blocks:
    """The memory of what is saved for the backward pass, each block once and weights not at all."""

    def __init__(self, nets: Sequence[nn.Module]) -> None:
        self.weights = {p.untyped_storage().data_ptr() for net in nets for p in (*net.parameters(), *net.buffers())}
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
