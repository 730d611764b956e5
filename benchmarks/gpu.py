"""What a GPU makes of the published networks, with random weights, against the bars of the project: results/gpu.json.

    python -m benchmarks.gpu            # one GPU, under 8 minutes
    python -m benchmarks.gpu --small    # tiny networks on any device, to see that it runs; writes nothing

The share of the peak is that of a training step of DiT-XL/2 by the project's loop: three forward passes' operations
over its time, against a large product of matrices in bf16 on the same device. Sampling is counted in network calls:
those of the published steps, timed at the shapes that they have. Graphs: Euler steps of DiT-XL/2 for one guided image,
each replayed from one CUDA graph, against the same calls from Python.

What is known is written and printed after each section. A section that fails is named, and the others go on.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.common import in_turn, save
from multiscale.core.device import allow_tf32, autocast, cast_weights, default_device, layout_of, placed
from multiscale.core.normalisation import Normalisation
from multiscale.core.storage import Table
from multiscale.methods.msf.parts import ScaleConfig, ScalePart
from multiscale.methods.msf.settings import FlowPart
from multiscale.methods.ssd.model import SSDConfig, build_network
from multiscale.methods.ssd.process import ScaleSpaceProcess
from multiscale.networks.dit import DiTNetwork
from multiscale.networks.unet import UNetNetwork
from multiscale.training.loop import Trainer
from multiscale.training.part import Training
from multiscale.training.prepare import compile_in_place

# Least values: of the measured peak, and of the ratios of seconds per image.
BARS = {"training_share_of_peak": 0.35, "ssd_over_ddpm": 1.58, "msf_over_dit_250_steps": 4.0, "graph_over_eager": 1.5}
CHANNELS, CLASSES = 4, 1000
FIRST, SECOND, DIT = 100, 50, 250  # published steps: of MSF's two scales, the first one guided, and of DiT, guided
LATEST = 6.0  # minutes: no section begins later


@dataclass(frozen=True)
class Sizes:
    """The networks and the shapes."""

    dit: DiTNetwork
    scales: tuple[DiTNetwork, DiTNetwork]
    grids: tuple[int, int]
    """edges of the latents of MSF's scales, the second one DiT's"""
    unet: Mapping[str, Any]
    resolution: int
    levels: int
    batch: int
    steps: int
    """training steps that are timed, and Euler steps"""
    repeats: int
    product: int
    """edge of the matrices"""


PUBLISHED = Sizes(
    DiTNetwork(preset="DiT-XL/2"),
    (DiTNetwork(preset="MSF-0"), DiTNetwork(preset="MSF-1")),
    (24, 32),
    {"preset": "SSD-64"},
    resolution=64, levels=4, batch=64, steps=25, repeats=5, product=8192,
)  # fmt: skip
TINY = DiTNetwork(depth=2, width=16, heads=2, patch=2)
SMALL = Sizes(
    TINY,
    (TINY, TINY),
    (4, 6),
    {"width": 8, "multipliers": [1, 1], "blocks": 1, "attention": [], "heads": 1, "groups": 4},
    resolution=8, levels=2, batch=2, steps=2, repeats=1, product=64,
)  # fmt: skip


def on_gpu() -> bool:
    return default_device().type == "cuda"


def wait() -> None:
    """Until the device has done what it was told."""
    if on_gpu():
        torch.cuda.synchronize()


def seconds(calls: Mapping[Any, Callable[[], object]], repeats: int, times: int) -> dict[Any, float]:
    """The median seconds of each call, in blocks of so many; the blocks of all calls take turns."""

    def block(call: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(times):
                call()
            wait()

        return run

    found = in_turn({key: block(call) for key, call in calls.items()}, repeats)
    return {key: statistics.median(each) / times for key, each in found.items()}


def peak(sizes: Sizes) -> float:
    """Operations a second of a product of matrices in bf16, the best of some."""
    a, b = (torch.randn(sizes.product, sizes.product, device=default_device()).bfloat16() for _ in range(2))
    return 2 * sizes.product**3 / min(seconds({k: lambda: a @ b for k in range(5)}, sizes.repeats, 10).values())


def flops(size: DiTNetwork, grid: int, inputs: int) -> int:
    """Of one forward pass on one latent; a multiply-add counts two."""
    with torch.device("meta"):
        net = size.build(inputs, CHANNELS, CLASSES)
        given = torch.empty(1, inputs, grid, grid), torch.empty(1), torch.empty(1, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        net(*given)
    return int(counter.get_total_flops())


def training(sizes: Sizes) -> dict[str, float]:
    """Steps of the project's loop on DiT, the loading of batches included."""
    grid, unit = sizes.grids[1], Normalisation(shift=[0.0] * CHANNELS, scale=[1.0] * CHANNELS)
    config = ScaleConfig(index=0, resolutions=[grid], target=unit, latent=unit, classes=CLASSES, network=sizes.dit)
    budget = Training(images=10**9, batch=sizes.batch, lr=1e-4, precision="bf16", compile=on_gpu())
    about = {"method": "dit", "kind": "msf", "dataset": "full", "index": 0, "network": sizes.dit.model_dump()}
    section = FlowPart.model_validate(about | {"training": budget.model_dump()})
    rows = 4 * sizes.batch
    table = Table({"y0": torch.randn(rows, CHANNELS, grid, grid).numpy(), "label": (torch.arange(rows) % 10).numpy()})
    with default_device():  # random weights take long on a CPU
        net = config.build()
    run = Trainer(ScalePart("dit", table, net, config, section), budget, 0, randomness="device")
    run.networks["net"].train()
    with allow_tf32():
        taken = seconds({0: lambda: run.step(run.fetch(run.seen // sizes.batch))}, sizes.repeats, sizes.steps)[0]
    done, best = 3 * flops(sizes.dit, grid, CHANNELS) * sizes.batch / taken, peak(sizes)
    return {
        "training_share_of_peak": done / best,
        "training_images_a_second": sizes.batch / taken,
        "training_tflops": done / 1e12,
        "peak_tflops": best / 1e12,
    }


def ready(build: Callable[[], nn.Module], compiled: bool = True) -> nn.Module:
    """A network as samplers hold it; compiled on a GPU, for each shape."""
    with default_device():
        net = build()
    net = cast_weights(net.eval().requires_grad_(False), "bf16")
    net = placed(net, default_device(), layout_of(net))
    if on_gpu() and compiled:
        compile_in_place([net])
    return net


def inferred(net: nn.Module, *given: Any) -> Callable[[], Tensor]:
    """A call of a network as samplers make it."""

    def call() -> Tensor:
        with torch.inference_mode(), autocast("bf16", default_device()):
            found: Tensor = net(*given)
            return found

    return call


def latents(grid: int, inputs: int, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """What a DiT is called with."""
    device = default_device()
    x = torch.randn(batch, inputs, grid, grid, device=device)
    return x, torch.full((batch,), 0.5, device=device), torch.zeros(batch, dtype=torch.long, device=device)


def msf(sizes: Sizes) -> dict[str, float]:
    """Network seconds of an image, by MSF and by DiT."""
    shapes = {"first": (sizes.scales[0], sizes.grids[0], CHANNELS), "second": (sizes.scales[1], sizes.grids[1], 8)}
    shapes["dit"] = (sizes.dit, sizes.grids[1], CHANNELS)
    calls = {
        name: inferred(ready(partial(size.build, inputs, CHANNELS, CLASSES)), *latents(grid, inputs, sizes.batch))
        for name, (size, grid, inputs) in shapes.items()
    }
    each = seconds(calls, sizes.repeats, 5)
    ours = 2 * FIRST * each["first"] + SECOND * each["second"]
    return {
        "msf_over_dit_250_steps": 2 * DIT * each["dit"] / ours,
        "msf_over_dit_100_steps": 2 * FIRST * each["dit"] / ours,
        "msf_seconds_an_image": ours / sizes.batch,
    }


def ssd(sizes: Sizes) -> dict[str, float]:
    """Network seconds of an image over all steps of the process, by SSD and by DDPM."""
    device, calls, steps = default_device(), {}, {}
    for levels in (1, sizes.levels):
        settings = ScaleSpaceProcess(levels=levels)
        network = UNetNetwork.model_validate({**sizes.unet, "top_block": levels == 1})  # as published
        config = SSDConfig(channels=3, resolution=sizes.resolution, classes=0, process=settings, network=network)
        net, process = ready(partial(build_network, config)), settings.build(sizes.resolution)
        steps[levels] = Counter((process.resolution(t), process.resolution(t - 1)) for t in range(process.steps))
        for before, after in steps[levels]:
            x = torch.randn(sizes.batch, 3, before, before, device=device).to(memory_format=torch.channels_last)
            t = torch.zeros(sizes.batch, dtype=torch.long, device=device)
            calls[levels, before, after] = inferred(net, x, t, None, after)
    each = seconds(calls, sizes.repeats, 5)
    ddpm, ours = (sum(n * each[levels, *pair] for pair, n in steps[levels].items()) for levels in (1, sizes.levels))
    return {"ssd_over_ddpm": ddpm / ours, "ssd_seconds_an_image": ours / sizes.batch}


def graph(sizes: Sizes) -> dict[str, float]:
    """Guided Euler steps for one image; without a GPU there is no graph, and the ratio is left out."""
    net = ready(partial(sizes.dit.build, CHANNELS, CHANNELS, CLASSES), compiled=False)
    x, t, labels = latents(sizes.grids[1], CHANNELS, 2)
    call = inferred(net, x, t, labels)

    def euler() -> None:
        velocity, null = call().chunk(2)
        x.sub_((null + 1.5 * (velocity - null)).float() / sizes.steps)

    calls: dict[str, Callable[[], object]] = {"eager": euler}
    if on_gpu():
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(3):
                euler()
        torch.cuda.current_stream().wait_stream(beside)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            euler()
        calls["graph"] = captured.replay
    each = seconds(calls, sizes.repeats, sizes.steps)
    found = {f"{name}_seconds_a_step": value for name, value in each.items()}
    return found | ({"graph_over_eager": each["eager"] / each["graph"]} if "graph" in each else {})


SECTIONS = (training, msf, graph, ssd)  # the last one takes longest, for the compiler


def measured(sizes: Sizes) -> Iterator[dict[str, Any]]:
    """After each section the figures so far, what they took, for each bar whether it is met, and what has failed."""
    started = before = time.perf_counter()
    found: dict[str, float] = {}
    took: dict[str, float] = {}
    failed: dict[str, str] = {}
    for section in SECTIONS:
        try:
            if before - started > 60 * LATEST:
                raise TimeoutError(f"not begun after {LATEST:g} minutes")
            gc.collect()
            if on_gpu():
                torch.cuda.empty_cache()
            found |= section(sizes)
        except Exception as error:
            traceback.print_exc()
            failed[section.__name__] = (str(error).strip() or type(error).__name__).splitlines()[0]
        now = time.perf_counter()
        took[section.__name__], before = now - before, now
        bars = {
            name: {"least": bar, "found": found[name], "met": found[name] >= bar}
            for name, bar in BARS.items()
            if name in found
        }
        about = {"bars": bars, "figures": dict(found), "failed": dict(failed)}
        yield about | {"seconds": dict(took), "minutes": (now - started) / 60}


def main() -> None:
    result: dict[str, Any] = {}
    if "--small" in sys.argv[1:]:
        *_, result = measured(SMALL)
        print(json.dumps(result, indent=2))
    elif not on_gpu():
        sys.exit("error: torch sees no GPU here; allowed: --small, or a machine with one")
    else:
        for result in measured(PUBLISHED):
            save("gpu", result)
    if result["failed"]:
        sys.exit(f"error: {', '.join(result['failed'])}")


if __name__ == "__main__":
    main()
