"""The floating-point operations of a training, counted on real steps of few images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_unflatten

from multiscale.core.device import autocast
from multiscale.core.streams import Draws
from multiscale.hollow import FORMULAS
from multiscale.plan import Double, shapes
from multiscale.training.part import Part, let_through, trainable

IMAGES, STEPS = 2, 16  # of a step, and steps at least: not every step has the same turns and penalties


class Counter(TorchDispatchMode):
    """Counts by torch's formulas, as its FlopCounterMode does, which takes ten times as long for its modules' sums."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's is not typed
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if formula := FORMULAS.get(func.overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out


class Echo(Double):
    """Notes of a call which of the known ones it is like: that with the same shapes, which cost the same."""

    def __init__(self, net: nn.Module, counter: Counter) -> None:
        super().__init__(net)
        self.counter = counter

    def learn(self, leaves: list[Any], tree: TreeSpec, followed: bool) -> tuple[int, Any]:
        given, options = tree_unflatten(leaves, tree)
        before = self.counter.flops
        with torch.no_grad():
            out = self.plain(*given, **options)
        self.counter.flops = before  # the network is not a part of what lies around it
        return len(self.known), shapes(out)


@dataclass(frozen=True)
class Chosen(Draws):
    """The random numbers of a step, of which some integers are given."""

    given: Mapping[str, int] = field(default_factory=dict)

    def choice(self, name: str, count: int) -> int:
        return self.given[name] if name in self.given else super().choice(name, count)


def all_kinds(part: Part) -> int:
    """Steps among which are all kinds that a part makes, in whole cycles of it."""
    return -(-STEPS // part.cycle) * part.cycle


def steps_of(part: Part, steps: int, images: int, device: torch.device) -> Iterator[tuple[Chosen, int]]:
    """The random numbers of the first steps, with all that the part says it may draw, and how often each comes."""
    odds = part.odds()
    for values in itertools.product(*(each.items() for each in odds.values())):
        given = {name: value for name, (value, _) in zip(odds, values)}
        for step in range(steps):
            draws = Chosen(0, part.name, step, images, slice(0, images), device, given=given)
            yield draws, math.prod(often for _, often in values)


def flops_per_image(part: Part, precision: str, device: torch.device) -> float:
    """Operations for an image in training, backward passes included and optimisers left out; a multiply-add counts two.

    The mean over whole cycles of steps, with all that the part says it may draw, each as often as it comes. Steps that
    call the networks with the same shapes are counted once. The part is left as it was, but on the device.
    """
    count = min(IMAGES, len(part.data))
    steps = all_kinds(part)
    nets = [*part.networks.values(), *part.frozen.values()]
    for net in nets:
        net.to(device)
    batch = {key: value.to(device) for key, value in part.data[torch.arange(count)].items()}
    trained = trainable(part.networks)

    def loss(name: str, draws: Chosen) -> Tensor:
        with autocast(precision, device):
            return part.loss(name, part.networks, batch, draws)[0]

    total, weights, known = 0, 0, dict[Any, int]()
    with unchanged(nets), Counter() as counter:
        echoes = [Echo(net, counter) for net in nets]
        for draws, often in steps_of(part, steps, count, device):
            weights += often
            for name in part.turns(draws.step):
                let_through(trained, name)
                counter.flops = 0
                with _echoing(echoes):
                    loss(name, draws)
                key = (name, counter.flops, *(tuple(echo.calls) for echo in echoes))
                if key not in known:
                    counter.flops = 0
                    loss(name, draws).backward()
                    known[key] = counter.flops
                total += often * known[key]
    return total / (count * weights)


@contextmanager
def _echoing(echoes: Sequence[Echo]) -> Iterator[None]:
    """Meanwhile echoes answer in place of their networks."""
    for echo in echoes:
        echo.calls.clear()
        echo.instead()
    try:
        yield
    finally:
        for echo in echoes:
            echo.leave()


@contextmanager
def unchanged(nets: Sequence[nn.Module]) -> Iterator[None]:
    """Afterwards networks have the buffers of before, no gradients, and want those that they wanted.

    What they draw from torch's own streams meanwhile, as its dropout does, moves none of these.
    """
    wanted = [(p, p.requires_grad) for net in nets for p in net.parameters()]
    held = [(buffer, buffer.clone()) for net in nets for buffer in net.buffers()]
    gpus = {p.device for p, _ in wanted if p.is_cuda}
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        for parameter, wants in wanted:
            parameter.requires_grad_(wants).grad = None
        for buffer, before in held:
            buffer.copy_(before)
