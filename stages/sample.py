"""Makes the images of one method from its seeds, in samples/METHOD, and measures what an image costs.

Image k has seed first_seed + k and class k modulo the number of classes, or (sample.labels: data) a class that the seed
draws as often as the training images have it. Beside the images: grid.png (columns are classes), strip.png (the first
images through the sampler's steps) and, in reports/timing, the cost of an image.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor

from multiscale import methods, pictures, sampling
from multiscale.core.device import default_device, describe, peak_memory_bytes
from multiscale.core.pixels import to_pixels
from multiscale.core.storage import TensorWriter, atomic_folder, write_json
from multiscale.core.streams import classes_of_seeds
from multiscale.networks import autoencoder
from stages.cluster import pool
from stages.common import codec, settings
from stages.common.harness import command, progress
from stages.common.images import class_counts, classes
from stages.common.paths import MODELS, SAMPLES, TIMINGS
from stages.schema import Sample

STRIP_FRAMES = 7


def check(name: str, params) -> None:
    """Raises BadInput unless the method's parts, and no others, are trained."""
    section = params.methods[name]
    wanted = set(section.parts)
    found = {path.name for path in (MODELS / name).glob("[!.]*")}
    if not found:
        raise settings.refuse("sample", "METHOD", name, "a method whose parts are trained (dvc repro trains them)")
    if found != wanted:
        raise settings.refuse(
            MODELS / name, "parts", sorted(found), f"{', '.join(section.parts)} (delete what is left over)"
        )


class Artist:
    """A method's sampler, and what the stage asks of it."""

    def __init__(self, name: str, params):
        section = params.methods[name]
        folders = [MODELS / name / part for part in section.parts]
        self.name, self.section = name, params.sample
        decoder = autoencoder.load_or_pixels(folders[0] / codec.BESIDE, params.data.channels)
        self.sampler = methods.sampler(section.kind).load_sampler(
            folders, section.model_dump(), decoder, self.section.precision
        )

    def make(self, seeds: list[int], labels: Tensor) -> Tensor:
        """At most a batch of uint8 images (n, C, H, H)."""
        return next(sampling.generate(self.sampler, seeds, labels, self.section.batch))

    def strip(self, seeds: list[int], labels: Tensor) -> Image:
        """A picture of a few images through the sampler's steps."""
        shows = getattr(self.sampler, "shows", "from noise to image")
        return pictures.strip(strip_of(self.sampler, seeds, labels), f"{self.name}: {shows}")

    def cost(self, labels: Tensor) -> dict:
        """See `cost`."""
        return cost(self.sampler, self.section, labels)


def labels_of(count: int, kinds: int) -> Tensor:
    """The classes in turn: image k is asked for class k modulo their number."""
    return torch.arange(count) % kinds


def strip_of(sampler: sampling.Sampler, seeds: list[int], labels: Tensor) -> list[tuple[str, Tensor]]:
    """At most seven frames, evenly over the steps; the last of each scale is always among them."""
    frames: list[tuple[str, Tensor]] = []
    sampler(seeds, labels, lambda caption, images: frames.append((caption, to_pixels(images))))
    ends = [i for i in range(len(frames)) if i + 1 == len(frames) or frames[i][0] != frames[i + 1][0]]
    each = max(1, STRIP_FRAMES // len(ends))
    chosen: list[int] = []
    start = 0
    for end in ends:
        chosen += sorted({round(float(i)) for i in np.linspace(end, start, each)})
        start = end + 1
    captions = [f"{frames[i][0]}, step {i + 1}" for i in chosen]
    return [(caption, frames[i][1]) for caption, i in zip(captions, chosen)]


def main(method_name: str) -> None:
    params = settings.load("run", "data", "sample", "methods")
    if method_name not in params.methods:
        raise settings.refuse("sample", "METHOD", method_name, f"one of {', '.join(params.methods)}")
    check(method_name, params)
    section: Sample = params.sample
    kinds, title = classes(), f"sample {method_name}"
    seeds = list(range(section.first_seed, section.first_seed + section.images))
    uniform = section.labels == "uniform"
    labels = labels_of(section.images, kinds) if uniform else classes_of_seeds(seeds, class_counts())
    size, channels = params.data.size, params.data.channels
    batches = [slice(start, start + section.batch) for start in range(0, section.images, section.batch)]
    with (
        atomic_folder(SAMPLES / method_name) as folder,
        pool(title, params.run, partial(Artist, method_name, params)) as workers,
        progress(title, section.images) as reach,
    ):
        shapes = {
            "pixels": (np.uint8, (section.images, channels, size, size)),
            "label": (np.int64, (section.images,)),
        }
        about = {"first_seed": str(section.first_seed), "labels": section.labels}
        writer = TensorWriter(folder / "images.safetensors", shapes, about)
        writer.write("label", 0, labels)
        done = 0
        for images in workers.map("make", ((seeds[rows], labels[rows]) for rows in batches)):
            writer.write("pixels", done, images)
            done += len(images)
            reach(done)
        grid = f"{method_name}: seeds from {section.first_seed} on"
        sheet = (labels if kinds > 1 else None, section.grid_rows, section.grid_columns, grid)
        pictures.of_classes(torch.from_numpy(writer.arrays["pixels"]), *sheet).save(folder / "grid.png")
        (strip,) = workers.map("strip", [(seeds[:4], labels[:4])])
        strip.save(folder / "strip.png")
        writer.close()
        (timing,) = workers.map("cost", [(labels,)])
    write_json(TIMINGS / f"sample-{method_name}.json", timing)


def cost(sampler: sampling.Sampler, section: Sample, labels: Tensor) -> dict:
    """What one image costs: seconds at batch 1 and batch B, network calls, FLOPs, parameters, peak memory."""
    device = default_device()
    calls = sampling.count_calls(sampler, labels[:1])
    return {
        "seconds_per_image": sampling.seconds_per_image(sampler, section.batch, labels, section.repeats),
        "seconds_per_image_batch_1": sampling.seconds_per_image(sampler, 1, labels, section.repeats),
        "batch": section.batch,
        "repeats": section.repeats,
        "network_calls": sum(calls.values()),
        "network_calls_by_network": calls,
        "flops_per_image": sampling.flops_per_image(sampler, labels),
        "parameters": sum(p.numel() for net in sampler.networks.values() for p in net.parameters()),
        "peak_memory_bytes": peak_memory_bytes(device),
        "device": describe(device),
    }


if __name__ == "__main__":
    command(main, __doc__, {"method_name": "a key of `methods`"})
