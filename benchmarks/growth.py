"""Seconds and peak memory against resolution, number of images and number of stages, with exponents.

    python -m benchmarks.growth [SECTION ...]     # all by default; seven minutes on one core

Sections: resolution, images (four of the minutes, most of them for latents), stages. A quantity that grows as size^b
has the exponent b, fitted to the three largest sizes, where constant costs are small. Beside it stands the exponent of
the work: of the floating-point operations for networks, 2 (pixels) for transforms, 1 for what goes over all images or
stages once. Memory is what a call adds to the process at its peak.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib
import numpy as np
import polars as pl
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import miniature, work
from benchmarks.common import RESULTS, exponent, save
from multiscale.core.streams import Order
from multiscale.evaluation import memorisation
from multiscale.methods.wmgm.bands import decompose_images
from multiscale.training.loop import Trainer
from stages import decompose, download, latents, reference
from stages.common.images import pixel_table
from stages.latents import Encoder
from stages.schema import Experiment

RESOLUTIONS = [32, 64, 128, 256]
PARTS = ["dit", "msf-0", "ddpm", "ssd-4l", "wmgm-low", "wmgm-details", "swd-teacher", "swd"]
BATCH = 2
WARMUP = 200  # images that no point is made of: imports take seconds
IMAGES = [1_000, 4_000, 16_000, 100_000]
STAGES = [10, 25, 50, 100, 200]
Point = dict[str, float]


def peak_memory(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of a call, and the MiB that it adds to the process at its peak."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # what earlier calls freed goes back, or it would hide what this one adds
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again
    before = resident("VmRSS")
    started = time.perf_counter()
    call()
    return time.perf_counter() - started, (resident("VmHWM") - before) / 1024


def resident(key: str) -> float:
    """A size of this process in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def point(size: float, call: Callable[[], object], repeats: int = 3, each: float = 1, **about: float) -> Point:
    """The median of some calls: seconds divided by `each`, and the largest peak."""
    call()
    seconds, peaks = zip(*(peak_memory(call) for _ in range(repeats)))
    return {"size": size, "seconds": statistics.median(seconds) / each, "mib": max(peaks), **about}


def series(what: str, points: list[Point], work_exponent: float | None = None) -> dict:
    """The points of one quantity with the exponents of seconds and memory, and of the work, by default of `flops`."""
    last, sizes = points[-3:], [each["size"] for each in points[-3:]]
    found = {"seconds": exponent(sizes, [each["seconds"] for each in last])}
    if all(each["mib"] > 1 for each in last):
        found["memory"] = exponent(sizes, [each["mib"] for each in last])
    found["work"] = exponent(sizes, [each["flops"] for each in last]) if work_exponent is None else work_exponent
    text = ", ".join(f"{name} {value:.2f}" for name, value in found.items())
    print(f"{what}: exponents of {text}; {points[-1]['seconds']:.3g} s at {points[-1]['size']:,.0f}", file=sys.stderr)
    return {"what": what, "exponents": found, "points": points}


# --- resolution


def scaled(params: Experiment, resolution: int) -> Experiment:
    """The recipe at another resolution, every network as it is."""
    factor = resolution // params.data.resolution
    grown = lambda found: [factor * each for each in found]  # noqa: E731
    sections = {
        name: each.model_copy(update={"resolutions": grown(each.resolutions)}) if hasattr(each, "resolutions") else each
        for name, each in params.decompose.items()
    }
    students = {
        name: each.model_copy(
            update={"schedule": each.schedule.model_copy(update={"resolutions": grown(each.schedule.resolutions)})}
        )
        for name, each in params.students.items()
    }
    return params.model_copy(
        update={
            "data": params.data.model_copy(update={"resolution": resolution}),
            "vae": params.vae.model_copy(update={"resolutions": grown(params.vae.resolutions)}),
            "latents": params.latents.model_copy(update={"resolutions": grown(params.latents.resolutions)}),
            "decompose": sections,
            "students": students,
        }
    )


def step_of(run: Trainer) -> Callable[[], None]:
    """The first training step, again and again: some draw their resolution from the number of the step."""

    def step() -> None:
        run.seen = 0
        run.step(run.fetch(0))

    return step


def resolution() -> list[dict]:
    recipe = work.recipe()
    found: dict[str, list[Point]] = {}
    for edge in RESOLUTIONS:
        params = scaled(recipe, edge)
        codec, images = work.codec(params), work.pixels(params, 8)
        encoder = Encoder(codec, params.latents.precision)
        with FlopCounterMode(display=False) as counter:
            encoder.encode(images, edge)
        flops = {"flops": counter.get_total_flops() / len(images)}
        encode = point(edge, lambda e=encoder, x=images, r=edge: e.encode(x, r), each=len(images), **flops)
        found.setdefault("encode", []).append(encode)
        for name in ("haar", "db4"):
            split = point(edge, lambda x=images, name=name: decompose_images(x, name, 1), each=len(images))
            found.setdefault(f"bands, {name}", []).append(split)
        with miniature.folder():
            torch.manual_seed(0)
            miniature.prepare(params, count=8)
            for part, training in miniature.parts(params):
                if part.name in PARTS:
                    run = Trainer(part, training.model_copy(update={"batch": BATCH}), 0)
                    step = step_of(run)
                    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
                        step()
                    made = point(edge, step, each=BATCH, flops=counter.get_total_flops() / BATCH)
                    found.setdefault(f"training step, {part.name}", []).append(made)
    transforms = ("bands, haar", "bands, db4")
    return [series(what, points, 2.0 if what in transforms else None) for what, points in found.items()]


# --- number of images


def write_zip(path: Path, count: int) -> None:
    """A zip of `count` PNG in ten classes."""
    pixels = np.random.default_rng(0).integers(256, size=(32, 32), dtype=np.uint8)
    encoded = miniature.png(pixels)
    with zipfile.ZipFile(path, "w") as archive:
        for row in range(count):
            archive.writestr(f"{row % 10}/{row:07d}.png", encoded)


def write_parquet(path: Path, count: int) -> None:
    """A Parquet file of `count` PNG in one row group, as most libraries write it."""
    pixels = np.random.default_rng(0).integers(256, size=(64, 32, 32), dtype=np.uint8)
    encoded = [miniature.png(each) for each in pixels]
    rows = range(count)
    frame = {"image": [encoded[row % 64] for row in rows], "label": [row % 10 for row in rows]}
    pl.DataFrame(frame).write_parquet(path, row_group_size=count)


def read_latents(count: int) -> None:
    """An epoch of training batches in random order."""
    table, order = decompose.Dataset().latents(32), Order(0, "benchmark", count)
    for start in range(0, count, 16):
        table[order.rows(start, 16)]


def images() -> list[dict]:
    params = work.recipe()
    shares = {"test_share": 0.0, "validation_share": 0.0}  # all images are for training
    files = params.model_copy(
        update={
            "data": params.data.model_copy(update={"source": "files", **shares}),
            "evaluate": params.evaluate.model_copy(update={"floors": []}),  # they need images of a test split
        }
    )
    found: dict[str, list[Point]] = {}

    def add(what: str, count: int, call: Callable[[], object]) -> None:
        seconds, peak = peak_memory(call)  # once: the largest take half a minute
        found.setdefault(what, []).append({"size": count, "seconds": seconds, "mib": peak})

    for count in (WARMUP, *IMAGES):
        with miniature.folder():
            for kind, write in (("zip", write_zip), ("parquet", write_parquet)):
                path = Path(f"images.{kind}").absolute()  # the reader keeps the last block of a path
                write(path, count)
                data = files.data.model_copy(update={"path": str(path)})
                add(
                    f"download, {kind}", count, lambda data=data: download.main(files.model_copy(update={"data": data}))
                )
            miniature.write_autoencoder(params)
            for edge in (24, 32):
                add(f"latents, {edge} px", count, lambda edge=edge: latents.main(params, str(edge)))
            add("reading latents, an epoch", count, lambda count=count: read_latents(count))
            for name in ("wavelet", "full"):
                add(f"decompose, {name}", count, lambda name=name: decompose.main(params, name))
            add("reference, small images", count, lambda: reference.small(pixel_table("train")))
            if count < IMAGES[-1]:
                small = torch.rand(count, 1, 16, 16).half() * 255
                held = small[: count // 5]
                add("reference, nearest of a fifth", count, lambda a=held, b=small: memorisation.nearest(a, b))
    quadratic = ("reference, nearest of a fifth",)
    return [series(what, points[1:], 2.0 if what in quadratic else 1.0) for what, points in found.items()]


# --- number of stages


def pipeline(count: int) -> Iterator[tuple[str, dict]]:
    """A root, chains of two stages, and a report on all of them: `count` stages in all."""
    yield "root", {"cmd": "true", "outs": ["root.txt"]}
    ends = []
    for number in range((count - 2) // 2):
        yield f"train{number}", {"cmd": "true", "deps": ["root.txt"], "outs": [f"train{number}.txt"]}
        yield f"sample{number}", {"cmd": "true", "deps": [f"train{number}.txt"], "outs": [f"sample{number}.txt"]}
        ends.append(f"sample{number}.txt")
    yield "report", {"cmd": "true", "deps": ends, "outs": ["report.txt"]}


def stages() -> list[dict]:
    from dvc.repo import Repo

    from flows import graph

    found: dict[str, list[Point]] = {"plan of the flow": [], "dvc status": []}
    for count in STAGES:
        with miniature.folder() as folder:
            made = dict(pipeline(count))
            Path("dvc.yaml").write_text(json.dumps({"stages": made}))
            for stage in made.values():
                (folder / stage["outs"][0]).write_text(stage["outs"][0])
            for command in (["git", "init", "-q"], ["dvc", "init", "-q"], ["dvc", "commit", "-q", "-f"]):
                subprocess.run(command, check=True, env={**os.environ, "DVC_NO_ANALYTICS": "1"})
            plan = graph.plan()
            if len(plan) != len(made) or not all(stage.current for stage in plan):
                sys.exit(f"the pipeline of {count} stages is not up to date")
            found["plan of the flow"].append(point(len(made), graph.plan))
            found["dvc status"].append(point(len(made), lambda: Repo().status()))
    return [series(what, points, 1.0) for what, points in found.items()]


def draw(sections: dict[str, list[dict]]) -> None:
    """Seconds against size, a panel a section; the legend gives the exponents of time and of work."""
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles = {"resolution": "seconds an image, by resolution", "images": "seconds, by number of images"}
    titles["stages"] = "seconds, by number of stages"
    figure, panels = plt.subplots(1, len(sections), figsize=(6.2 * len(sections), 6.5), squeeze=False)
    for axes, (name, rows) in zip(panels[0], sections.items()):
        for number, row in enumerate(rows):
            points, found = row["points"], row["exponents"]
            label = f"{row['what']}: {found['seconds']:.2f} ({found['work']:.2f})"
            style = {"marker": "os^v"[number // 10], "color": f"C{number % 10}"}
            axes.plot([p["size"] for p in points], [p["seconds"] for p in points], label=label, **style)
        axes.set(xscale="log", yscale="log", title=titles[name])
        axes.grid(which="both", alpha=0.2)
        axes.legend(fontsize=8, title="exponent of seconds (of the work)", title_fontsize=8)
    figure.tight_layout()
    figure.savefig(RESULTS / "growth.png", dpi=100)


SECTIONS = {each.__name__: each for each in (resolution, images, stages)}


def main(names: list[str]) -> None:
    if unknown := set(names) - set(SECTIONS):
        sys.exit(f"{', '.join(sorted(unknown))}: no such section; allowed: {', '.join(SECTIONS)}")
    work.as_stages_do(work.recipe())
    path = RESULTS / "growth.json"
    before = json.loads(path.read_text())["sections"] if path.exists() else {}
    made = {name: SECTIONS[name]() for name in names or SECTIONS}
    sections = {name: made.get(name, before.get(name)) for name in SECTIONS if name in made or name in before}
    draw(sections)
    save("growth", {"sections": sections}, ["dvc", "polars"])


if __name__ == "__main__":
    main(sys.argv[1:])
