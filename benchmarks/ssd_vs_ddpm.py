"""SSD against DDPM with the published networks, initialised but not trained: time does not depend on the weights.

    python -m benchmarks.ssd_vs_ddpm [side ...]     # 64 (default), 128, 256

At 64 pixels whole samplers run in turn over an evenly spaced part of the 1000 steps, with equal numbers of network
calls; since none of the few changes of side can be left out, the calls at each side are weighted to their share of the
1000. For every side one forward and one training step of each pair of sides is timed and summed with the exact step
counts. The rest of the sampler (resizes, transition noise) is stated as a share.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import nn

from benchmarks.common import in_turn, ratio, save
from multiscale.core.device import autocast, cast_weights, default_device, resolve_precision
from multiscale.methods.ssd import parts as ssd_parts
from multiscale.methods.ssd import sampler as ssd_sampler
from multiscale.methods.ssd.process import CLEAN, ScaleSpace, respaced
from multiscale.networks.unet import PRESETS

LEVELS = {64: (1, 2, 4), 128: (1, 3, 5), 256: (1, 3, 4, 6)}
PUBLISHED = {"sampling at 64, 4L": 1.58, "sampling at 64, 2L": 1.18}
BATCH = {64: 24, 128: 4, 256: 1}
CALLS, REPEATS = 32, 3


def config_of(side: int, levels: int) -> dict:
    _, width, multipliers, blocks, attention, heads, groups = PRESETS[f"SSD-{side}"]
    network = {"width": width, "multipliers": multipliers, "blocks": blocks, "attention": attention, "heads": heads}
    network |= {"groups": groups, "top_block": levels == 1}  # as published: the plain UNet runs its last block
    process = {"steps": 1000, "levels": levels, "sizes": "halved", "schedule": "convex-decay", "gamma": 0.5}
    return {
        "channels": 3,
        "side": side,
        "classes": 0,
        "unet": "flexi",
        "predicts": "x0",
        "network": network,
        "process": process | {"operator": "bilinear"},
    }


def sampler(side: int, levels: int) -> ssd_sampler.ScaleSpaceSampler:
    config = config_of(side, levels)
    process = ssd_parts.build_process(config)
    steps = next(n for n in range(CALLS, 0, -1) if len(respaced(process, n)) == CALLS)
    solver = {"steps": steps, "eta": 1.0, "variance": "small", "cfg": 1.0, "last_step": "clean"}
    return ssd_sampler.ScaleSpaceSampler(ssd_parts.build_network(config, process), config, process, solver, "auto")


class Clock:
    """Seconds spent inside a network, by the side of its input."""

    def __init__(self, net: nn.Module):
        self.reset()
        net.register_forward_pre_hook(self.start)
        net.register_forward_hook(self.stop)

    def reset(self) -> None:
        self.seconds, self.calls = Counter(), Counter()

    def start(self, *_: object) -> None:
        self.started = time.perf_counter()

    def stop(self, net: nn.Module, args: tuple, *_: object) -> None:
        side = args[0].shape[-1]
        self.seconds[side] += time.perf_counter() - self.started
        self.calls[side] += 1


def whole_samplers(side: int) -> dict:
    """Whole samplers in turn, weighted to 1000 steps, and the share of their time outside the network."""
    made = {f"{levels}L": sampler(side, levels) for levels in LEVELS[side]}
    labels, seeds = torch.zeros(BATCH[side], dtype=torch.long), list(range(BATCH[side]))
    clocks = {name: Clock(each.net) for name, each in made.items()}
    rows: dict[str, list[dict]] = {name: [] for name in made}
    for _ in range(REPEATS):
        for name, each in made.items():
            clock, started = clocks[name], time.perf_counter()
            clock.reset()
            each(seeds, labels)
            seconds = time.perf_counter() - started
            rows[name].append({"seconds": seconds, "network": dict(clock.seconds), "calls": dict(clock.calls)})
    shares = {name: Counter(map(each.process.side, range(1000))) for name, each in made.items()}
    weighted = {
        name: [
            sum(shares[name][at] * row["network"][at] / row["calls"][at] for at in row["calls"]) for row in rows[name]
        ]
        for name in made
    }
    return {
        "batch": BATCH[side],
        "steps_of_1000_by_side": shares,
        "times_faster": {name: ratio(weighted, "1L", name) for name in made if name != "1L"},
        "times_faster_as_run": {
            name: ratio({key: [row["seconds"] for row in rows[key]] for key in rows}, "1L", name)
            for name in made
            if name != "1L"
        },
        "share_outside_the_network": {
            name: 1 - sum(sum(row["network"].values()) for row in runs) / sum(row["seconds"] for row in runs)
            for name, runs in rows.items()
        },
        "runs": rows,
    }


def by_level(side: int) -> dict:
    """One forward and one training step of each pair of sides, summed over the 1000 steps.

    Forwards of all networks take turns; training takes too much memory for that.
    """
    sampling = total(side, in_turn({key: call for n in LEVELS[side] for key, call in forwards(side, n)}, REPEATS, 1))
    training = {}
    for levels in LEVELS[side]:
        training |= total(side, in_turn(dict(training_steps(side, levels)), REPEATS, 1))
    return {
        kind: {"seconds_of_1000_steps_per_image": seconds}
        | {"times_faster": {name: seconds["1L"] / value for name, value in seconds.items() if name != "1L"}}
        for kind, seconds in (("sampling", sampling), ("training", training))
    }


def pairs(process: ScaleSpace) -> Counter:
    """The steps of each pair of sides among all of a process."""
    return Counter((process.side(t), process.side(t - 1 if t else CLEAN)) for t in range(process.steps))


def total(side: int, seconds: dict[tuple, list[float]]) -> dict[str, float]:
    """Seconds of 1000 steps per image, by the levels of the network."""
    sums: dict[str, float] = Counter()
    for (levels, *pair), each in seconds.items():
        steps = pairs(ssd_parts.build_process(config_of(side, levels)))[tuple(pair)]
        sums[f"{levels}L"] += steps * statistics.median(each) / BATCH[side]
    return dict(sums)


def forwards(side: int, levels: int) -> Iterator[tuple[tuple, Callable[[], None]]]:
    """A forward of each pair of sides, at the precision of sampling."""
    config = config_of(side, levels)
    process, precision = ssd_parts.build_process(config), resolve_precision("auto", default_device())
    net = cast_weights(ssd_parts.build_network(config, process).eval(), precision)
    net = net.to(default_device(), memory_format=torch.channels_last)
    for before, after in pairs(process):
        call = partial(net, *states(side, before), None, after)
        yield (levels, before, after), partial(inferred, call, precision)


def inferred(call: Callable, precision: str) -> None:
    """A call as samplers make it."""
    with torch.inference_mode(), autocast(precision, default_device()):
        call()


def training_steps(side: int, levels: int) -> Iterator[tuple[tuple, Callable[[], None]]]:
    """A training step of each pair of sides."""
    config = config_of(side, levels)
    process, precision = ssd_parts.build_process(config), resolve_precision("auto", default_device())
    net = ssd_parts.build_network(config, process).to(default_device(), memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)

    def step(x: torch.Tensor, t: torch.Tensor, after: int) -> None:
        with autocast(precision, default_device()):
            loss = net(x, t, None, after).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for before, after in pairs(process):
        yield (levels, before, after), partial(step, *states(side, before), after)


def states(side: int, before: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of states at a side, and their times."""
    x = torch.randn(BATCH[side], 3, before, before, device=default_device()).to(memory_format=torch.channels_last)
    return x, torch.zeros(len(x), dtype=torch.long, device=default_device())


if __name__ == "__main__":
    sides = [int(side) for side in sys.argv[1:]] or [64]
    for side in sides:
        if side == 64:
            save("ssd_vs_ddpm-64-samplers", {"published": PUBLISHED, **whole_samplers(side)})
        save(f"ssd_vs_ddpm-{side}", {"published": PUBLISHED, **by_level(side)})
