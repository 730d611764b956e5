"""SSD against DDPM with the published networks, initialised but not trained: time does not depend on the weights.

    python -m benchmarks.ssd_vs_ddpm [side ...]     # 64 (default), 128, 256

At 64 pixels whole samplers run in turn over an evenly spaced part of the 1000 steps with the same share of each level;
for larger sides one forward of each pair of sides is timed and summed with the exact step counts. The rest of the
sampler (resizes, transition noise) is stated as a share.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from functools import partial

import torch
from torch import nn

from benchmarks.common import in_turn, ratio, save
from multiscale.core.device import autocast, cast_weights, default_device, resolve_precision, set_threads
from multiscale.methods import ssd
from multiscale.networks.unet import PRESETS
from multiscale.processes.diffusion import CLEAN

LEVELS = {64: (1, 2, 4), 128: (1, 3, 5), 256: (1, 3, 4, 6)}
PUBLISHED = {"sampling at 64, 4L": 1.58, "sampling at 64, 2L": 1.18}
BATCH = {64: 24, 128: 4, 256: 1}
STEPS, REPEATS = 30, 3  # of the sampler, besides the changes of side


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
        "network": network,
        "process": process | {"operator": "bilinear"},
    }


def sampler(side: int, levels: int) -> ssd.ScaleSpaceSampler:
    config = config_of(side, levels)
    process = ssd.build_process(config)
    solver = {"steps": STEPS, "eta": 1.0, "cfg": 1.0, "last_step": "clean"}
    return ssd.ScaleSpaceSampler(ssd.build_network(config, process), config, process, solver, "auto")


class Clock:
    """Seconds spent inside a network."""

    def __init__(self, net: nn.Module):
        self.seconds = 0.0
        net.register_forward_pre_hook(self.start)
        net.register_forward_hook(self.stop)

    def start(self, *_: object) -> None:
        self.started = time.perf_counter()

    def stop(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self.started


def whole_samplers(side: int) -> dict:
    """Whole samplers in turn, and the share of their time outside the network."""
    made = {f"{levels}L": sampler(side, levels) for levels in LEVELS[side]}
    labels, seeds = torch.zeros(BATCH[side], dtype=torch.long), list(range(BATCH[side]))
    seconds = in_turn({name: partial(each, seeds, labels) for name, each in made.items()}, REPEATS, warmup=0)
    outside = {}
    for name, each in made.items():
        clock, started = Clock(each.net), time.perf_counter()
        each(seeds, labels)
        outside[name] = 1 - clock.seconds / (time.perf_counter() - started)
    return {
        "batch": BATCH[side],
        "steps": {name: len(each.plan) for name, each in made.items()},
        "steps_by_side": {name: Counter(each.process.side(t) for t, _, _ in each.plan) for name, each in made.items()},
        "times_faster": {name: ratio(seconds, "1L", name) for name in made if name != "1L"},
        "share_outside_the_network": outside,
        "seconds": seconds,
    }


def by_level(side: int) -> dict:
    """One forward and one training step of each pair of sides, summed over the 1000 steps."""
    device = default_device()
    totals: dict[str, dict[str, float]] = {"sampling": {}, "training": {}}
    for levels in LEVELS[side]:
        config = config_of(side, levels)
        process = ssd.build_process(config)
        pairs = Counter((process.side(t), process.side(t - 1 if t else CLEAN)) for t in range(process.steps))
        for kind, total in totals.items():
            total[f"{levels}L"] = 0.0
            net = ssd.build_network(config, process)
            if kind == "sampling":
                net = cast_weights(net.eval(), resolve_precision("auto", device))
            net = net.to(device, memory_format=torch.channels_last)
            optimizer = torch.optim.AdamW(net.parameters(), fused=True)
            for (before, after), count in pairs.items():
                x = torch.randn(BATCH[side], 3, before, before, device=device).to(memory_format=torch.channels_last)
                t = torch.zeros(len(x), dtype=torch.long, device=device)

                def forward(x: torch.Tensor = x, t: torch.Tensor = t, net: nn.Module = net, after: int = after):
                    with torch.inference_mode(), autocast(resolve_precision("auto", device), device):
                        return net(x, t, None, after)

                def step(x=x, t=t, net=net, after=after, optimizer=optimizer):
                    with autocast(resolve_precision("auto", device), device):
                        loss = net(x, t, None, after).float().square().mean()
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()

                seconds = in_turn({"it": forward if kind == "sampling" else step}, REPEATS, warmup=1)["it"]
                total[f"{levels}L"] += count * sorted(seconds)[len(seconds) // 2] / BATCH[side]
    return {
        kind: {"seconds_of_1000_steps_per_image": total}
        | {"times_faster": {name: total["1L"] / value for name, value in total.items() if name != "1L"}}
        for kind, total in totals.items()
    }


if __name__ == "__main__":
    set_threads()
    sides = [int(side) for side in sys.argv[1:]] or [64]
    for side in sides:
        if side == 64:
            save("ssd_vs_ddpm-64-samplers", {"published": PUBLISHED, **whole_samplers(side)})
        save(f"ssd_vs_ddpm-{side}", {"published": PUBLISHED, **by_level(side)})
