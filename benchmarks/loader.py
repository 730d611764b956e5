"""How fast batches are read from a memory-mapped table, against what the smallest network of the embedded recipe eats.

    python -m benchmarks.loader [GiB]

The table is larger than what the process may hold: its size, the resident memory that reading it added, and the page
cache that the kernel may take back at any time are stated apart.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import in_turn, save
from multiscale import flow
from multiscale.core.device import autocast, default_device, resolve_precision
from multiscale.core.storage import Table, TensorWriter
from multiscale.core.streams import Draws, Order
from multiscale.networks.dit import DiTNetwork
from stages.common import settings

SHAPE = (4, 32, 32)  # an ImageNet-256 latent
BATCH = 16
STEPS = 50


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


def main(gigabytes: float) -> None:
    count = int(gigabytes * 2**30 / (np.prod(SHAPE) * 2))
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = Path(folder, "latents.safetensors")
        writer = TensorWriter(path, {"mean": (np.float16, (count, *SHAPE)), "label": (np.int64, (count,))})
        for start in range(0, count, 4096):
            rows = min(4096, count - start)
            writer.write("mean", start, torch.randn(rows, *SHAPE).half())
        writer.close()
        table, order = Table.open(path), Order(0, "benchmark", count)
        before, position = anonymous_bytes(), 0

        def read() -> None:
            nonlocal position
            for _ in range(STEPS):
                table[order.rows(position, BATCH)]
                position += BATCH

        seconds = in_turn({"read": read}, 10)["read"]
        name, eaten = consumption()
        rate = BATCH * STEPS / sorted(seconds)[len(seconds) // 2]
        result = {
            "table_bytes": path.stat().st_size,
            "added_anonymous_bytes": anonymous_bytes() - before,
            "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "images_per_second": rate,
            "smallest_part": name,
            "its_images_per_second": eaten,
            "times_faster": rate / eaten,
            "seconds_per_50_batches": seconds,
        }
    save("loader", result)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 4.0)
