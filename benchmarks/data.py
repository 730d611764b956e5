"""What a data set of 100,000 images costs: decoding them once, opening and reading them, and hashing them by DVC.

    python -m benchmarks.data [images]

The images are JPEG of 178 x 218 pixels, the size of CelebA's, resized to 64 x 64 by ADM's method. Each figure is of a
process of its own: the seconds, and the most memory that no file backs.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks import miniature
from benchmarks.common import apart, hashing, save
from benchmarks.loader import anonymous_bytes
from multiscale.core.streams import Order
from stages import download
from stages.common import images, paths, settings
from stages.schema import Experiment

KINDS, CLASSES, SHAPE, RESOLUTION = 200, 10, (218, 178), 64
BATCH, BATCHES = 256, 200
FEWER = 4_000  # on no, one and two workers, each of which decodes on two threads


def write(folder: Path, count: int) -> None:
    """Images class/name.jpg, links to KINDS different ones: smooth noise, which compresses as photos do."""
    random = np.random.default_rng(0)
    for kind in range(KINDS):
        coarse = random.integers(256, size=(28, 23, 3), dtype=np.uint8)
        encoded = io.BytesIO()
        Image.fromarray(coarse).resize(SHAPE[::-1], Image.Resampling.BICUBIC).save(encoded, "JPEG", quality=90)
        Path(f"{kind}.jpg").write_bytes(encoded.getvalue())
    for row in range(count):
        path = folder / str(row % CLASSES) / f"{row:07}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.link(f"{row % KINDS}.jpg", path)


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Puts the seconds and the most anonymous memory of what is done meanwhile into the dict, as it ends."""
    found: dict[str, float] = {}
    done, most = threading.Event(), [anonymous_bytes()]

    def watch() -> None:
        while not done.wait(0.05):
            most.append(anonymous_bytes())

    thread, started = threading.Thread(target=watch), (time.perf_counter(), time.process_time())
    thread.start()
    yield found
    done.set()
    thread.join()
    found |= {"seconds": time.perf_counter() - started[0], "processor_seconds": time.process_time() - started[1]}
    found["anonymous_bytes"] = max(most)


def experiment(params: Experiment, workers: int) -> Experiment:
    about = {"source": "files", "path": "set", "resolution": RESOLUTION, "channels": 3, "resize": "box-bicubic"}
    data, run = params.data.model_copy(update=about), params.run.model_copy(update={"workers": workers})
    return params.model_copy(update={"data": data, "run": run})


def step(what: str, recipe: str, workers: int) -> None:
    """One figure, in a process of its own; prints it as JSON."""
    params = settings.validate(json.loads(recipe), paths.EXPERIMENT)
    with measured() as found:
        if what == "download":
            download.main(experiment(params, workers))
        elif what == "check":
            images.check("train")
        else:
            table, position = images.pixel_table("train"), 0
            order = Order(0, "benchmark", len(table))
            for _ in range(BATCHES):
                table[order.rows(position, BATCH)]
                position += BATCH
    print(json.dumps(found))


def main(count: int) -> None:
    recipe, results = settings.load().model_dump_json(), {}

    def run(what: str, workers: int = 0) -> dict[str, float]:
        return apart(f"from benchmarks.data import step; step({what!r}, {recipe!r}, {workers})")

    with miniature.folder():
        write(Path("set"), count)
        results[f"download of {count:,}"] = made = run("download")
        made["images_per_second"] = count / made["seconds"]
        made["images_per_processor_second"] = count / made["processor_seconds"]
        results["check of the checksums"] = run("check")
        results["reading in random order"] = read = run("read")
        read["images_per_second"] = BATCH * BATCHES / read["seconds"]
        read["images_per_processor_second"] = BATCH * BATCHES / read["processor_seconds"]
        files = [path for path in paths.PIXELS.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        results["DVC"] = hashing(paths.PIXELS) | {"files": len(files), "bytes": size}
        print(json.dumps(results), file=sys.stderr)  # the rest takes as long on a busy machine
        for workers in (0, 1, 2):
            for path in (Path("set"), paths.PIXELS):
                shutil.rmtree(path)
            write(Path("set"), FEWER)
            results[f"download of {FEWER:,}, {workers} workers"] = made = run("download", workers)
            made["images_per_second"] = FEWER / made["seconds"]
    save("data", {"images": count, "resolution": RESOLUTION, "figures": results}, ["dvc", "pillow"])


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000)
