"""How near each network of the embedded recipe comes to what this machine can do: results/roofline.json and .png.

    python -m benchmarks.roofline     # two minutes on one core

The machine's peaks are measured: large matrix products in bf16 and fp32 on one thread and two, and a triad
a = b + s c from the second-level cache, the last-level cache and memory. A pass is a network's forward pass on inputs
that its training gave it, or forward and backward, at the recipe's batch and precision, on one thread.

The floating-point operations and bytes of a pass are counted operator by operator; each reads its inputs and writes
its outputs once, views are free. An operator takes at least the time of its operations at the peak of its precision,
and of its bytes at the speed of the smallest cache that holds them. The sum of these bounds over the time is the
achieved share. The gap is the difference, times the passes in a training of the recipe.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import matplotlib
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks import miniature, work
from benchmarks.common import RESULTS, in_turn, save
from multiscale.core.device import autocast, default_device, layout_of, placed, resolve_precision
from multiscale.core.streams import Draws
from multiscale.evaluation import features
from multiscale.training.part import Part, Training

aten = torch.ops.aten
FOOTPRINTS = {"second-level cache": 3 * 2**18, "last-level cache": 3 * 2**22, "memory": 3 * 2**28}  # bytes of a triad
STEPS, REPEATS = 4, 5  # batches of a network, and how often they are timed
SLOWEST = 6  # operators listed for each of the largest gaps


@dataclass(frozen=True)
class Machine:
    """Peaks of one thread: operations a second by dtype, and bytes a second by the bytes that a loop goes over."""

    flops: dict[torch.dtype, float]
    bandwidth: dict[int, float]

    def seconds(self, flops: float, size: float, dtype: torch.dtype) -> float:
        """The least time of an operator."""
        holds = next((footprint for footprint in sorted(self.bandwidth) if size <= footprint), max(self.bandwidth))
        return max(flops / self.flops[dtype], size / self.bandwidth[holds])


@dataclass
class Count:
    """Operations, bytes, operators and least seconds of passes."""

    flops: float = 0.0
    bytes: float = 0.0
    operators: int = 0
    bound_seconds: float = 0.0
    bound_seconds_of: Counter[str] = field(default_factory=Counter)


def matmul_peak(dtype: torch.dtype, threads: int, size: int = 2048) -> float:
    """Operations a second of a product of two square matrices, the best of some."""
    torch.set_num_threads(threads)
    a, b = (torch.randn(size, size).to(dtype) for _ in range(2))
    return 2 * size**3 / min(in_turn({"matmul": lambda: a @ b}, 5)["matmul"])


def triad_peak(size: int, threads: int) -> float:
    """Bytes a second of a = b + s c over `size` bytes, the best of some; writing counts once."""
    torch.set_num_threads(threads)
    a, b, c = torch.rand(3, size // 12).unbind()
    calls = max(1, 2**26 // size)
    block = work.times(calls, lambda: torch.add(b, c, alpha=0.5, out=a))
    return size * calls / min(in_turn({"triad": block}, 7)["triad"])


class Counting(TorchDispatchMode):
    """Counts every operator that runs inside, forward or backward."""

    def __init__(self, machine: Machine):
        super().__init__()
        self.machine, self.found = machine, Count()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs, outputs = ([x for x in tree_leaves(found) if isinstance(x, Tensor)] for found in ((args, kwargs), out))
        memory = {x.untyped_storage().data_ptr() for x in inputs}
        if not func._schema.is_mutable and all(x.untyped_storage().data_ptr() in memory for x in outputs):
            return out  # a view
        tensors = inputs + outputs
        flops = operations(func.overloadpacket, args, kwargs or {}, out)
        size = sum(min(x.numel() * x.element_size(), x.untyped_storage().nbytes()) for x in tensors)
        low = any(x.dtype == torch.bfloat16 for x in tensors)
        bound = self.machine.seconds(flops, size, torch.bfloat16 if low else torch.float32)
        self.found.flops += flops
        self.found.bytes += size
        self.found.operators += 1
        self.found.bound_seconds += bound
        self.found.bound_seconds_of["products" if flops else "others"] += bound
        return out


def operations(packet: Any, args: Any, kwargs: Any, out: Any) -> float:
    """The floating-point operations of an operator that multiplies matrices; a multiply-add counts two."""
    if packet == aten._scaled_dot_product_flash_attention_for_cpu:
        return sdpa_flop_count(*(x.shape for x in args[:3]))
    if packet == aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return sdpa_backward_flop_count(*(x.shape for x in args[:4]))
    return float(flop_registry[packet](*args, **kwargs, out_val=out)) if packet in flop_registry else 0.0


@dataclass
class Network:
    """One network: calls as its training made them, and how many passes a training of the recipe has."""

    name: str
    net: nn.Module
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    precision: str
    batch: int
    passes: float
    backward: bool = True

    def run(self, backward: bool) -> None:
        """One pass on each of the calls."""
        for args, kwargs in self.calls:
            with torch.set_grad_enabled(backward), autocast(self.precision, default_device()):
                made = self.net(*args, **kwargs)
                outputs = [x for x in tree_leaves(made) if isinstance(x, Tensor)]
                total = sum(x.float().square().mean() for x in outputs)
            if backward:
                total.backward()
                self.net.zero_grad(set_to_none=True)


def networks_of(part: Part, training: Training, seed: int) -> Iterator[Network]:
    """The networks of a part, each with the inputs of its first call in its own loss; none where no step is taken."""
    if not (steps := training.images // training.batch):
        return  # a teacher as it is
    device, precision = default_device(), resolve_precision(training.precision, default_device())
    for net in (*part.networks.values(), *part.frozen.values()):
        placed(net, device, layout_of(net)).train()
    turns = Counter[str]()
    for step in range(1000):
        turns.update(part.turns(step))
    for name, net in part.networks.items():
        calls: list[Any] = []
        seen: list[Any] = []
        for step in range(STEPS):
            rows = torch.arange(step * training.batch, (step + 1) * training.batch) % len(part.data)
            layout = layout_of(net)
            batch = {
                key: x.to(device, memory_format=layout if x.ndim == 4 else torch.contiguous_format)
                for key, x in part.data[rows].items()
            }
            draws = Draws(seed, part.name, step, training.batch, slice(0, training.batch), device)
            hook = net.register_forward_pre_hook(partial(record, seen), with_kwargs=True)
            with autocast(precision, device):
                part.loss(name, part.networks, batch, draws)
            hook.remove()
            calls.append(detached(seen[0]))
            seen.clear()
        title = part.name if len(part.networks) == 1 else f"{part.name}, {name}"
        yield Network(title, net, calls, precision, training.batch, steps * turns[name] / 1000)


def record(seen: list[Any], net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    seen.append((args, kwargs))


def detached(call: tuple[tuple[Any, ...], dict[str, Any]]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    args, kwargs = call
    clean = lambda x: x.detach() if isinstance(x, Tensor) else x  # noqa: E731
    return tuple(clean(x) for x in args), {key: clean(x) for key, x in kwargs.items()}


def extractor_of(params: Any) -> Network:
    """The extractor of the metrics on one batch of images; its passes are those of one method's samples."""
    net = features.create(params.evaluate.extractor, params.evaluate.weights, default_device())
    images, batch = work.pixels(params, params.run.batch).expand(-1, 3, -1, -1).contiguous(), params.run.batch
    passes = len(params.methods) * params.sample.images / batch
    return Network(params.evaluate.extractor, net, [((images,), {})], "fp32", batch, passes, backward=False)


def measured(network: Network, machine: Machine, backward: bool) -> dict:
    """Counts, seconds and achieved share of a pass, the mean over the network's calls."""
    run: Callable[[], None] = partial(network.run, backward)
    with Counting(machine) as counting:
        run()
    seconds = [each / len(network.calls) for each in in_turn({"run": run}, REPEATS, warmup=1)["run"]]
    found = {
        key: value / len(network.calls) for key, value in asdict(counting.found).items() if key != "bound_seconds_of"
    }
    parts = {key: value / len(network.calls) for key, value in counting.found.bound_seconds_of.items()}
    time = statistics.median(seconds)
    return {
        **found,
        "bound_seconds_of": parts,
        "intensity": found["flops"] / found["bytes"],
        "gflops": found["flops"] / time / 1e9,
        "share": found["bound_seconds"] / time,
        "seconds": seconds,
    }


def slowest(network: Network) -> list[dict]:
    """The operators of a pass that take longest, with their share of its time."""
    with torch.profiler.profile() as profile:
        network.run(network.backward)
    events = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)
    whole = sum(event.self_cpu_time_total for event in events)
    return [
        {"operator": event.key, "share": event.self_cpu_time_total / whole, "calls": event.count / len(network.calls)}
        for event in events[:SLOWEST]
    ]


def draw(rows: list[dict], peaks: dict, bandwidth: dict[str, float]) -> None:
    """The roofline: attained operations a second against operations a byte, below what the machine can do."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(11, 7))
    low, high = 1.0, 200.0
    for style, (name, speed) in zip(("-", "--", ":"), bandwidth.items()):
        top = min(high, peaks["bf16"]["1"] / speed)
        axes.plot([low, top], [low * speed, top * speed], style, color="0.5", linewidth=1.2, label=f"triad, {name}")
    for precision, color in (("bf16", "C0"), ("fp32", "C1")):
        peak = peaks[precision]["1"]
        axes.plot([low, high], [peak, peak], color=color, linewidth=1.5, label=f"matrix product, {precision}")
    for number, row in enumerate(rows, 1):
        color, x, y = "C0" if row["precision"] == "bf16" else "C1", row["intensity"], row["gflops"]
        axes.plot(x, y, "o", markersize=13, color=color, alpha=0.8)
        axes.annotate(str(number), (x, y), color="white", ha="center", va="center", fontsize=8, weight="bold")
    names = [f"{n:2d}  {row['name']} ({row['pass']}): {row['share']:.0%}" for n, row in enumerate(rows, 1)]
    axes.text(1.02, 0.99, "\n".join(names), transform=axes.transAxes, va="top", fontsize=9, linespacing=1.5)
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(low, high),
        ylim=(10, 1.5 * peaks["bf16"]["1"]),
        xlabel="operations a byte (operators read and write once)",
    )
    axes.set(
        ylabel="GFLOP/s on one thread", title="Networks of the embedded recipe; beside the name the achieved share"
    )
    axes.legend(loc="lower right", fontsize=9)
    axes.grid(which="both", alpha=0.2)
    figure.savefig(RESULTS / "roofline.png", dpi=110, bbox_inches="tight")


def main() -> None:
    params, threads = work.recipe(), sorted({1, torch.get_num_threads(), torch.multiprocessing.cpu_count()})
    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    peaks = {name: {str(n): matmul_peak(dtype, n) / 1e9 for n in threads} for name, dtype in dtypes.items()}
    triads = {name: {str(n): triad_peak(size, n) / 1e9 for n in threads} for name, size in FOOTPRINTS.items()}
    work.as_stages_do(params)
    flops = {dtype: 1e9 * peaks[name]["1"] for name, dtype in dtypes.items()}
    machine = Machine(flops, {size: 1e9 * triads[name]["1"] for name, size in FOOTPRINTS.items()})
    with miniature.folder():
        torch.manual_seed(0)
        miniature.prepare(params)
        networks = [net for part, training in miniature.parts(params) for net in networks_of(part, training, 0)]
        networks.append(extractor_of(params))
        rows = []
        for network in networks:
            about = {"name": network.name, "precision": network.precision, "batch": network.batch}
            about["parameters"] = sum(p.numel() for p in network.net.parameters())
            for backward in (False, True) if network.backward else (False,):
                row = {**about, "pass": "forward, backward" if backward else "forward"}
                row |= measured(network, machine, backward)
                if backward == network.backward:
                    gap = statistics.median(row["seconds"]) - row["bound_seconds"]
                    row["recipe"] = {"passes": network.passes, "gap_seconds": gap * network.passes}
                rows.append(row)
        gaps = sorted((row for row in rows if "recipe" in row), key=lambda row: -row["recipe"]["gap_seconds"])[:3]
        named = {network.name: network for network in networks}
        largest = [{"name": row["name"], **row["recipe"], "slowest": slowest(named[row["name"]])} for row in gaps]
    speeds = {name: each["1"] for name, each in triads.items()}
    draw([row for row in rows if "recipe" in row], peaks, speeds)
    save("roofline", {"gflops_of_products": peaks, "gbytes_of_triads": triads, "largest_gaps": largest, "rows": rows})


if __name__ == "__main__":
    main()
