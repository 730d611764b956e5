"""Times calls in turn beside a reference workload, on a machine that other processes may use.

Seconds depend on what else runs. The ratio to a fixed workload, timed just before and just after, depends on it far
less, and its median over several rounds less still.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import psutil
import torch
from torch.nn import functional as F

from multiscale.core.device import default_device
from multiscale.core.streams import generator

Call = Callable[[], object]
Clock = Literal["wall", "processor"]

REFERENCE_FLOPS = 4_831_838_208  # of one call of the reference workload, half in convolutions, half in matrix products
LAP = 0.1  # seconds: a shorter call is repeated for as long
WAITED = 1.1  # wall over processor time, above which the process waited for a processor; of one thread
SHARED = 0.25  # of the machine's processors in use by other processes, above which they may slow it down


@dataclass(frozen=True)
class Lap:
    """What one call took, in seconds, and how many processors other processes used meanwhile."""

    wall: float
    processor: float
    others: float = 0.0

    @property
    def is_busy(self) -> bool:
        """Whether something else slowed the call down."""
        return self.wall > WAITED * self.processor or self.others > SHARED * (psutil.cpu_count() or 1)


@dataclass(frozen=True)
class Turn:
    """A lap, and the mean of the laps of the reference workload just before and just after."""

    lap: Lap
    reference: Lap


@dataclass(frozen=True)
class Figures:
    """What is published of a call."""

    seconds: float  # the median ratio to the reference, times the seconds of the reference on a quiet machine
    processor_seconds: float  # the same of processor time
    ratio: float  # of `clock`'s times, to the reference: the median over rounds
    spread: float  # the interquartile range of the ratios over their median
    busy: int  # rounds


def reference() -> Call:
    """The reference workload: convolutions and matrix products of float32, with the activations of a small network.

    Its sizes never change, and it does not depend on any method.
    """
    draws = generator(0, "reference workload")

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draws).to(default_device())

    layout = torch.channels_last
    images, kernel = draw(8, 32, 32, 32).to(memory_format=layout), draw(32, 32, 3, 3).to(memory_format=layout)
    tokens, widen, narrow = draw(8, 64, 192), draw(768, 192), draw(192, 768)

    @torch.inference_mode()
    def call() -> None:
        x, y = images, tokens
        for _ in range(16):
            x = F.silu(F.conv2d(x, kernel, padding=1)) / 16
        for _ in range(8):
            y = F.linear(F.gelu(F.linear(y, widen)), narrow) / 256

    return call


class Stopwatch:
    """Times groups of calls, each group between two laps of the reference workload; calls each once to begin with."""

    def __init__(self, groups: Mapping[str, Sequence[Call]]):
        self.groups, self.reference = groups, reference()
        for call in (self.reference, *(call for calls in groups.values() for call in calls)):
            call()

    def clock(self) -> Clock:
        """The clock for calls of this process."""
        return clock()

    def round(self, index: int) -> dict[str, list[Turn]]:
        """A turn of each call, by group; the order of the groups depends on the round."""
        order = list(self.groups)
        random.Random(index).shuffle(order)
        turns: dict[str, list[Turn]] = {}
        before = lap(self.reference)
        for name in order:
            laps = [lap(call) for call in self.groups[name]]
            after = lap(self.reference)
            turns[name] = [Turn(each, _mean(before, after)) for each in laps]
            before = after
        return turns


def lap(call: Call) -> Lap:
    """The mean of a call that is repeated until LAP seconds have passed."""
    count = 0
    _synchronise()
    others, processor, started = _in_use(), time.process_time(), time.perf_counter()
    while (wall := time.perf_counter() - started) < LAP or not count:
        call()
        _synchronise()
        count += 1
    own = time.process_time() - processor
    return Lap(wall / count, own / count, max(0.0, _in_use() - others - own) / wall)


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _in_use() -> float:
    """The processor seconds that the machine has spent, those that a hypervisor gave to others included."""
    spent = psutil.cpu_times()
    return sum(float(getattr(spent, kind, 0.0)) for kind in ("user", "nice", "system", "irq", "softirq", "steal"))


def _mean(one: Lap, two: Lap) -> Lap:
    return Lap((one.wall + two.wall) / 2, (one.processor + two.processor) / 2)


def best(rounds: Sequence[Mapping[str, Sequence[Turn]]]) -> Lap:
    """The least wall and processor seconds of the reference workload in all rounds: those of a quiet machine."""
    laps = [turn.reference for turns in rounds for group in turns.values() for turn in group]
    return Lap(min(each.wall for each in laps), min(each.processor for each in laps))


def clock() -> Clock:
    """Processor time for one thread of a CPU: it does not wait for anything but a processor, which others may take."""
    return "wall" if torch.cuda.is_available() or torch.get_num_threads() > 1 else "processor"


def figures(turns: Sequence[Turn], least: Lap, of: Clock) -> Figures:
    """The figures of one call from its turns, one a round; least: `best` of all rounds; of: where it was called."""
    ratios = [getattr(turn.lap, of) / getattr(turn.reference, of) for turn in turns]
    of_processor = [turn.lap.processor / turn.reference.processor for turn in turns]
    low, middle, high = (float(value) for value in np.quantile(ratios, (0.25, 0.5, 0.75)))
    return Figures(
        seconds=middle * float(getattr(least, of)),
        processor_seconds=float(np.median(of_processor)) * least.processor,
        ratio=middle,
        spread=(high - low) / middle,
        busy=sum(turn.lap.is_busy for turn in turns),
    )
