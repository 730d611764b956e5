"""SSD against DDPM with the published networks, initialised but not trained: time does not depend on the weights.

    python -m benchmarks.ssd_vs_ddpm [resolution ...]     # 64 (default), 128, 256

At 64 pixels whole samplers run in turn over an evenly spaced part of the 1000 steps, with equal numbers of network
calls. No change of resolution can be left out, so the calls at each resolution are weighted to their share of the 1000.
At every resolution one forward and one training step of each pair of resolutions is timed and summed with the exact
step counts. The rest of the sampler (resizes, transition noise) is stated as a share.
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
from multiscale.methods.ssd.model import SSDConfig, build_network
from multiscale.methods.ssd.process import ScaleSpace, ScaleSpaceProcess, respaced
from multiscale.methods.ssd.sampler import ScaleSpaceSampler
from multiscale.methods.ssd.settings import AncestralSolver
from multiscale.networks.unet import UNetNetwork

LEVELS = {64: (1, 2, 4), 128: (1, 3, 5), 256: (1, 3, 4, 6)}
PUBLISHED = {"sampling at 64, 4L": 1.58, "sampling at 64, 2L": 1.18}
BATCH = {64: 24, 128: 4, 256: 1}
CALLS, REPEATS = 32, 3


def config_of(resolution: int, levels: int) -> SSDConfig:
    # as published: the plain UNet runs its last block
    network = UNetNetwork.model_validate({"preset": f"SSD-{resolution}", "top_block": levels == 1})
    process = ScaleSpaceProcess(levels=levels)
    return SSDConfig(channels=3, resolution=resolution, classes=0, process=process, network=network)


def process_of(resolution: int, levels: int) -> ScaleSpace:
    return ScaleSpaceProcess(levels=levels).build(resolution)


def sampler(resolution: int, levels: int) -> ScaleSpaceSampler:
    config, process = config_of(resolution, levels), process_of(resolution, levels)
    steps = next(n for n in range(CALLS, 0, -1) if len(respaced(process, n)) == CALLS)
    return ScaleSpaceSampler(build_network(config), config, AncestralSolver(steps=steps), "auto")


class Clock:
    """Seconds spent inside a network, by the resolution of its input."""

    def __init__(self, net: nn.Module):
        self.reset()
        net.register_forward_pre_hook(self.start)
        net.register_forward_hook(self.stop)

    def reset(self) -> None:
        self.seconds, self.calls = Counter(), Counter()

    def start(self, *_: object) -> None:
        self.started = time.perf_counter()

    def stop(self, net: nn.Module, args: tuple, *_: object) -> None:
        resolution = args[0].shape[-1]
        self.seconds[resolution] += time.perf_counter() - self.started
        self.calls[resolution] += 1


def whole_samplers(resolution: int) -> dict:
    """Whole samplers in turn, weighted to 1000 steps, and the share of their time outside the network."""
    made = {f"{levels}L": sampler(resolution, levels) for levels in LEVELS[resolution]}
    labels, seeds = torch.zeros(BATCH[resolution], dtype=torch.long), list(range(BATCH[resolution]))
    clocks = {name: Clock(each.net) for name, each in made.items()}
    rows: dict[str, list[dict]] = {name: [] for name in made}
    for _ in range(REPEATS):
        for name, each in made.items():
            clock, started = clocks[name], time.perf_counter()
            clock.reset()
            each(seeds, labels)
            seconds = time.perf_counter() - started
            rows[name].append({"seconds": seconds, "network": dict(clock.seconds), "calls": dict(clock.calls)})
    shares = {name: Counter(map(each.process.resolution, range(1000))) for name, each in made.items()}
    weighted = {
        name: [
            sum(shares[name][at] * row["network"][at] / row["calls"][at] for at in row["calls"]) for row in rows[name]
        ]
        for name in made
    }
    return {
        "batch": BATCH[resolution],
        "steps_of_1000_by_resolution": shares,
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


def by_level(resolution: int) -> dict:
    """One forward and one training step of each pair of resolutions, summed over the 1000 steps.

    Forwards of all networks take turns; training takes too much memory for that.
    """
    sampling = total(
        resolution,
        in_turn({key: call for n in LEVELS[resolution] for key, call in forwards(resolution, n)}, REPEATS, 1),
    )
    training = {}
    for levels in LEVELS[resolution]:
        training |= total(resolution, in_turn(dict(training_steps(resolution, levels)), REPEATS, 1))
    return {
        kind: {"seconds_of_1000_steps_per_image": seconds}
        | {"times_faster": {name: seconds["1L"] / value for name, value in seconds.items() if name != "1L"}}
        for kind, seconds in (("sampling", sampling), ("training", training))
    }


def pairs(process: ScaleSpace) -> Counter:
    """The steps of each pair of resolutions among all of a process."""
    return Counter((process.resolution(t), process.resolution(t - 1)) for t in range(process.steps))


def total(resolution: int, seconds: dict[tuple, list[float]]) -> dict[str, float]:
    """Seconds of 1000 steps per image, by the levels of the network."""
    sums: dict[str, float] = Counter()
    for (levels, *pair), each in seconds.items():
        steps = pairs(process_of(resolution, levels))[tuple(pair)]
        sums[f"{levels}L"] += steps * statistics.median(each) / BATCH[resolution]
    return dict(sums)


def forwards(resolution: int, levels: int) -> Iterator[tuple[tuple, Callable[[], None]]]:
    """A forward of each pair of resolutions, at the precision of sampling."""
    process, precision = process_of(resolution, levels), resolve_precision("auto", default_device())
    net = cast_weights(build_network(config_of(resolution, levels)).eval(), precision)
    net = net.to(default_device(), memory_format=torch.channels_last)
    for before, after in pairs(process):
        call = partial(net, *states(resolution, before), None, after)
        yield (levels, before, after), partial(inferred, call, precision)


def inferred(call: Callable, precision: str) -> None:
    """A call as samplers make it."""
    with torch.inference_mode(), autocast(precision, default_device()):
        call()


def training_steps(resolution: int, levels: int) -> Iterator[tuple[tuple, Callable[[], None]]]:
    """A training step of each pair of resolutions."""
    process, precision = process_of(resolution, levels), resolve_precision("auto", default_device())
    net = build_network(config_of(resolution, levels)).to(default_device(), memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)

    def step(x: torch.Tensor, t: torch.Tensor, after: int) -> None:
        with autocast(precision, default_device()):
            loss = net(x, t, None, after).float().square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for before, after in pairs(process):
        yield (levels, before, after), partial(step, *states(resolution, before), after)


def states(resolution: int, before: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A batch of states at a resolution, and their times."""
    x = torch.randn(BATCH[resolution], 3, before, before, device=default_device()).to(memory_format=torch.channels_last)
    return x, torch.zeros(len(x), dtype=torch.long, device=default_device())


if __name__ == "__main__":
    resolutions = [int(resolution) for resolution in sys.argv[1:]] or [64]
    for resolution in resolutions:
        if resolution == 64:
            save("ssd_vs_ddpm-64-samplers", {"published": PUBLISHED, **whole_samplers(resolution)})
        save(f"ssd_vs_ddpm-{resolution}", {"published": PUBLISHED, **by_level(resolution)})
