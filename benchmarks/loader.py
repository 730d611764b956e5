"""How fast batches of a million latents are read from memory-mapped tables, against what networks eat.

    python -m benchmarks.loader [latents]

The latents are those of ImageNet-256: in shards as the stage `latents` writes them, and in one file as `decompose`
does. A table is larger than what the process may hold: its size, the memory that no file backs, and the page cache that
the kernel may take back at any time are stated apart. `cold` is read from the disk, after the kernel was asked to
forget the file.
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from contextlib import chdir
from pathlib import Path
from statistics import median

import numpy as np
import torch

from benchmarks.common import hashing, in_turn, save
from multiscale import flow
from multiscale.core.device import autocast, default_device, resolve_precision
from multiscale.core.storage import Table, TensorWriter
from multiscale.core.streams import Draws, Order
from multiscale.networks.dit import DiTNetwork
from stages.common import settings, shards

SHAPE = (4, 32, 32)  # an ImageNet-256 latent
BATCH = 16  # of the embedded recipe
BATCHES = {16: 50, 256: 20}  # read at a time
H100 = 650  # images/s that DiT-XL/2 trains on


def anonymous_bytes() -> int:
    """Memory of this process that no file backs: what really has to fit."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def consumption() -> tuple[str, float]:
    """The part with the fewest parameters, and the images a second that its training step takes in."""
    parts = settings.load().parts
    sized = {name: part for name, part in parts.items() if isinstance(getattr(part, "network", None), DiTNetwork)}
    name, part = min(sized.items(), key=lambda item: item[1].network.depth * item[1].network.width ** 2)
    device = default_device()
    net = part.network.build(4, 4, classes=10).to(device)
    optimizer = torch.optim.AdamW(net.parameters(), fused=True)
    x, labels = torch.randn(BATCH, 4, 8, 8, device=device), torch.zeros(BATCH, dtype=torch.long, device=device)

    def step() -> None:
        with autocast(resolve_precision("auto", device), device):
            draws = Draws(0, "benchmark", 0, BATCH, slice(0, BATCH), device)
            loss = flow.loss(lambda x, t: net(x, t, labels), x, draws, "uniform")
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = in_turn({"step": step}, 20)["step"]
    return name, BATCH / sorted(seconds)[len(seconds) // 2]


def write_shards(folder: Path, count: int) -> None:
    """Latents as of the stage `latents`. They repeat, which costs no less to read."""
    made = torch.randn(shards.ROWS, *SHAPE).half()
    for number, rows in enumerate(shards.slices(count, made[0].nbytes)):
        tensors = {"mean": made[: rows.stop - rows.start], "label": torch.arange(rows.start, rows.stop) % 1000}
        shards.save(folder / f"{number:05}.safetensors", tensors)


def write_file(path: Path, count: int) -> None:
    """The same latents in one file."""
    made = torch.randn(shards.ROWS, *SHAPE).half()
    writer = TensorWriter(path, {"mean": (np.float16, (count, *SHAPE)), "label": (np.int64, (count,))})
    for rows in shards.slices(count, made[0].nbytes):
        writer.write("mean", rows.start, made[: rows.stop - rows.start])
    writer.close()


def forget(path: Path) -> None:
    """Asks the kernel to drop the cached pages of a file, or of those in a folder."""
    for file in [path] if path.is_file() else sorted(path.iterdir()):
        with open(file, "rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def reading(path: Path) -> dict[str, object]:
    """Images a second by the size of a batch, and the memory that opening and reading added."""
    before = anonymous_bytes()
    forget(path)
    started = time.perf_counter()
    table = Table.open(path, "mean", "label")
    opened = time.perf_counter() - started
    order, position = Order(0, "benchmark", len(table)), 0

    def read(batch: int, steps: int) -> None:
        nonlocal position
        for _ in range(steps):
            table[order.rows(position, batch)]
            position += batch

    def timed(batch: int, steps: int) -> tuple[float, float]:
        """Seconds, and seconds of the processor: those of a machine that does nothing else."""
        started = time.perf_counter(), time.process_time()
        read(batch, steps)
        return time.perf_counter() - started[0], time.process_time() - started[1]

    cold, _ = timed(256, 20)
    seconds = {str(batch): [timed(batch, steps) for _ in range(10)] for batch, steps in BATCHES.items()}
    rates, processor = (
        {key: int(key) * BATCHES[int(key)] / median(pair[place] for pair in each) for key, each in seconds.items()}
        for place in (0, 1)
    )
    return {
        "bytes": sum(file.stat().st_size for file in ([path] if path.is_file() else path.iterdir())),
        "open_seconds": opened,
        "images_per_second": rates,
        "images_per_processor_second": processor,
        "cold_images_per_second": 256 * 20 / cold,
        "times_an_h100": {key: rate / H100 for key, rate in rates.items()},
        "added_anonymous_bytes": anonymous_bytes() - before,
        "seconds": seconds,
    }


def main(count: int) -> None:
    tables = {}
    for name, write in (("shards", write_shards), ("one file", write_file)):
        with tempfile.TemporaryDirectory(dir=".") as folder:
            path = Path(folder, "latents")
            write(path, count)
            tables[name] = reading(path)
            with chdir(folder):
                tables[name] |= hashing(Path(path.name))
    peak = {"anonymous_bytes": anonymous_bytes(), "peak_resident_bytes": resident_peak()}
    name, eaten = consumption()
    rate = tables["one file"]["images_per_second"][str(BATCH)]
    about = {"smallest_part": name, "its_images_per_second": eaten, "times_faster": rate / eaten}
    save("loader", {"latents": count, "tables": tables, **peak, **about})


def resident_peak() -> int:
    """With the pages of files."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
