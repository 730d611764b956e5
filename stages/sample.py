"""Samples the images of one method, in samples/METHOD, and counts what an image costs.

Image k has the seed first_seed + k and the class k modulo the number of classes, or with `sample.labels: data` a class
drawn with its frequency in the training images. A text-to-image method takes prompts at equal strides instead. Also
writes grid.png (one class per column, or each image above its caption), strip.png (the first images at the
sampler's steps) and costs.json (network calls, floating-point operations, parameters); the peak memory goes to
reports/timing. The stage `timing` measures seconds.

For each further number of solver steps, in `methods.METHOD.steps`, it samples the first of these images again (with
prompts or many classes, a random choice of them) to images-STEPS.safetensors, and writes their cost to steps.json.
"""

from __future__ import annotations

from stages.common.harness import command

if __name__ == "__main__":  # first: the imports below take seconds
    command(__doc__, {"method": "a key of `methods`"})

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from PIL.Image import Image
from torch import Tensor

from multiscale import model, pictures, sampling
from multiscale.core import intact
from multiscale.core.device import default_device, describe, peak_memory_bytes
from multiscale.core.pixels import to_pixels
from multiscale.core.settings import Sampled
from multiscale.core.storage import TensorWriter, sealed_folder, write_blocks, write_json
from multiscale.core.streams import classes_of_seeds, generator
from stages.common import enough, grids, texts, timings
from stages.common.cluster import Pool, pool
from stages.common.errors import BadInput, refuse
from stages.common.harness import progress, tell
from stages.common.images import class_counts, class_names, classes, evenly
from stages.common.paths import COSTS, IMAGES, MODELS, PROMPTS, SAMPLES, STEPS, parts_of
from stages.schema import Experiment
from stages.schema.data import Sample

STRIP_FRAMES = 7
SHOWN = 4  # images in the strip
COUNTED = 2  # images that are sampled to count what one costs


def check(name: str, params: Experiment) -> None:
    """Raises BadInput unless exactly the method's parts are trained."""
    wanted = set(params.parts_of(name))
    found = {path.name for path in parts_of(name)}
    if not found:
        raise BadInput(f"{MODELS / name}: {name} is not trained yet; run dvc repro sample@{name}")
    if found != wanted:
        raise refuse(MODELS / name, "parts", sorted(found), f"{', '.join(sorted(wanted))} (delete the others)")


class Artist:
    """A method's sampler on one worker, and those of its further numbers of solver steps."""

    def __init__(self, name: str, params: Experiment):
        self.name, self.section, method = name, params.sample, params.methods[name]
        settings: dict[int | None, Sampled] = {None: method, **{steps: method.at(steps) for steps in method.steps}}
        self.samplers = {
            steps: model.load(MODELS / name, each, self.section.precision) for steps, each in settings.items()
        }

    def make(self, seeds: list[int], labels: Tensor, steps: int | None = None) -> Tensor:
        """uint8 images (n, C, H, H), at most a batch; steps: of the solver, None: its own."""
        return next(sampling.generate(self.samplers[steps], seeds, labels, self.section.batch))

    def strip(self, seeds: list[int], labels: Tensor, names: list[str]) -> Image:
        """A picture of images at up to seven steps, evenly spaced; the last step of each scale is always shown.

        names: of their classes, [] for none.
        """
        frames: list[tuple[str, Tensor]] = []
        self.samplers[None](seeds, labels, lambda caption, images: frames.append((caption, to_pixels(images))))
        ends = [i for i in range(len(frames)) if i + 1 == len(frames) or frames[i][0] != frames[i + 1][0]]
        each = max(1, STRIP_FRAMES // len(ends))
        chosen: list[int] = []
        for start, end in zip([0, *(end + 1 for end in ends)], ends):
            chosen += sorted({round(float(i)) for i in np.linspace(end, start, each)})
        shown = [(f"{frames[i][0]}, step {i + 1}", frames[i][1]) for i in chosen]
        return pictures.strip(shown, f"{self.name}: {self.samplers[None].shows}", names)

    def memory(self) -> dict[str, Any]:
        """The peak memory so far, and the device."""
        device = default_device()
        return {"peak_memory_bytes": peak_memory_bytes(device), "device": describe(device)}

    def cost(self, labels: Tensor, steps: int | None = None) -> dict[str, Any]:
        """The cost of an image on any machine: network calls, floating-point operations, parameters."""
        sampler = self.samplers[steps]
        calls = sampling.count_calls(sampler, labels[:1])
        return {
            "network_calls": sum(calls.values()),
            "network_calls_by_network": calls,
            "flops_per_image": sampling.flops_per_image(sampler, labels),
            "parameters": sum(p.numel() for net in sampler.networks.values() for p in net.parameters()),
        }


def with_steps(
    steps: int, workers: Pool, folder: Path, section: Sample, seeds: list[int], told: Tensor, labels: Tensor
) -> dict[str, Any]:
    """Samples images with another number of solver steps, and gives what one costs.

    told (N,), labels (N,): what the sampler is told of the images of the seeds, and their classes.
    """
    count = len(seeds)
    batches = [slice(start, min(start + section.batch, count)) for start in range(0, count, section.batch)]
    made = torch.cat([*workers.map("make", ((seeds[rows], told[rows], steps) for rows in batches))])
    shapes = {"pixels": (np.uint8, tuple(made.shape)), "label": (np.int64, (count,))}
    write_blocks(folder / f"images-{steps}.safetensors", shapes, [{"pixels": made, "label": labels}])
    (cost,) = workers.map("cost", [(told, steps)])
    return {key: cost[key] for key in ("network_calls", "flops_per_image")}


def chosen(section: Sample, kinds: int, prompted: bool) -> Tensor:
    """The images that further numbers of steps sample again: the first ones, which have all classes in turn.

    Of prompts, and of more classes than images, the first ones are a part of the list: a random choice stands for all.
    """
    count = min(section.step_images, section.images)
    if prompted or (section.labels == "uniform" and kinds > count):
        return torch.randperm(section.images, generator=generator(0, "step images"))[:count].sort().values
    return torch.arange(count)


def of_classes(section: Sample, seeds: list[int], kinds: int) -> tuple[Tensor, Tensor]:
    """What the sampler is told of each image, and its class: the same."""
    in_turn = torch.arange(section.images) % kinds
    labels = in_turn if section.labels == "uniform" else classes_of_seeds(seeds, class_counts())
    return labels, labels


def of_prompts(prompts: pl.DataFrame, count: int) -> tuple[Tensor, Tensor]:
    """What the sampler is told of each image, the row of its prompt, and the prompt's class or 0."""
    turns = evenly(len(prompts), count)
    return turns + 1, torch.from_numpy(prompts["label"].fill_null(0).to_numpy().copy())[turns]


def main(params: Experiment, method: str) -> None:
    if method not in params.methods:
        raise refuse("sample", "METHOD", method, f"one of {', '.join(params.methods)}")
    check(method, params)
    intact.check(IMAGES)
    section = params.sample
    kinds, title = classes(), f"sample {method}"
    seeds = list(range(section.first_seed, section.first_seed + section.images))
    prompts = texts.prompts(MODELS / method)
    if prompts is None:
        enough.check_classes(params, enough.unseen_classes())
    told, labels = of_prompts(prompts, section.images) if prompts is not None else of_classes(section, seeds, kinds)
    resolution, channels = params.data.resolution, params.data.channels
    batches = [slice(start, start + section.batch) for start in range(0, section.images, section.batch)]
    with (
        sealed_folder(SAMPLES / method) as folder,
        pool(title, params.run, partial(Artist, method, params)) as workers,
        progress(title, section.images + SHOWN + COUNTED) as reach,
    ):
        shapes = {
            "pixels": (np.uint8, (section.images, channels, resolution, resolution)),
            "label": (np.int64, (section.images,)),
        }
        about = {"first_seed": str(section.first_seed), "labels": section.labels}
        writer = TensorWriter(folder / "images.safetensors", shapes, about)
        writer.write("label", 0, labels)
        done = 0
        for images in workers.map("make", ((seeds[rows], told[rows]) for rows in batches)):
            writer.write("pixels", done, images)
            done += len(images)
            reach(done)
        grid = f"{method}: seeds from {section.first_seed} on"
        captions = prompts["prompt"][(told - 1).tolist()].to_list() if prompts is not None else []
        if captions:
            pl.DataFrame({"prompt": captions}).write_parquet(folder / PROMPTS)
        sheet = grids.grid(torch.from_numpy(writer.arrays["pixels"]), labels, section, grid, captions)
        sheet.save(folder / "grid.png")
        names = class_names() if kinds > 1 else []
        of_rows = captions[:SHOWN] or [names[label] for label in labels[:SHOWN] if names]
        (strip,) = workers.map("strip", [(seeds[:SHOWN], told[:SHOWN], of_rows)])
        reach(done + SHOWN)
        strip.save(folder / "strip.png")
        writer.close()
        (memory,) = workers.map("memory", [()])
        (cost,) = workers.map("cost", [(told,)])
        write_json(folder / COSTS.name, cost)
        if others := params.methods[method].steps:
            tell(title, f"with {', '.join(map(str, others))} steps")
            rows = chosen(section, kinds, prompts is not None)
            given = [seeds[row] for row in rows], told[rows], labels[rows]
            costs = {str(steps): with_steps(steps, workers, folder, section, *given) for steps in others}
            write_json(folder / STEPS, costs)
        reach(done + SHOWN + COUNTED)
    timings.write(f"sample-{method}", SAMPLES / method / COSTS.name, memory)
