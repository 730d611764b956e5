"""The embedded recipe with a few random images in a temporary folder: every stage up to the trainings, no training."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import polars as pl
import torch
from PIL import Image

from multiscale import methods
from multiscale.core import intact
from multiscale.core.storage import CHECKSUM, write_json
from multiscale.training.part import Part, Training
from stages import classifier, decompose, latents, vae
from stages.common import paths, shards
from stages.common.images import SCHEMA, classes
from stages.schema import Experiment

CLASSES = 10


@contextmanager
def folder() -> Iterator[Path]:
    """A temporary working directory; the current one is back afterwards."""
    here = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        try:
            yield Path(name)
        finally:
            os.chdir(here)


def png(pixels: np.ndarray) -> bytes:
    """A uint8 array (H, W[, C]) as PNG."""
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "PNG", compress_level=3)
    return encoded.getvalue()


def write_images(count: int, resolution: int, channels: int, kinds: int = 64, test: int = 0) -> None:
    """Writes the images: `count` training images and `test` others, repeats of `kinds` random ones."""
    made = np.random.default_rng(0).integers(256, size=(kinds, channels, resolution, resolution), dtype=np.uint8)
    rows = np.arange(count + test)
    frame = {
        "id": [f"image-{row:07d}" for row in rows],
        "split": ["train"] * count + ["test"] * test,
        "label": rows % CLASSES,
    }
    paths.IMAGES.parent.mkdir(parents=True, exist_ok=True)
    for split, own in (("train", rows[:count]), ("test", rows[count:])):
        tensors = {"pixels": torch.from_numpy(made[own % kinds]), "label": torch.from_numpy(own % CLASSES)}
        shards.save(paths.PIXELS / split / "00000.safetensors", tensors)
        write_json(paths.PIXELS / split / "statistics.json", {"classes": CLASSES})
        intact.seal_folder(paths.PIXELS / split)
    marked = {CHECKSUM: intact.BLANK}
    pl.DataFrame(frame, schema=SCHEMA).write_parquet(paths.IMAGES, row_group_size=256, metadata=marked)
    intact.seal_file(paths.IMAGES)


def write_autoencoder(params: Experiment) -> None:
    """Writes models/vae with random weights."""
    paths.VAE.mkdir(parents=True)
    vae.build(params.vae, params.data.channels).save(paths.VAE)
    intact.seal_folder(paths.VAE)


def prepare(params: Experiment, count: int = 256) -> None:
    """Writes the images, the autoencoder, the latents and every decomposition of the recipe."""
    write_images(count, params.data.resolution, params.data.channels)
    write_autoencoder(params)
    for resolution in params.latents.resolutions:
        latents.main(params, str(resolution))
    for name in params.decompose:
        decompose.main(params, name)


def parts(params: Experiment) -> Iterator[tuple[Part, Training]]:
    """Every part of the recipe, with random weights: the autoencoder, the classifier, the parts, the students."""
    yield vae.build(params.vae, params.data.channels), params.vae.training
    settings = classifier.ClassifierConfig(
        channels=params.data.channels,
        classes=classes(),
        width=params.classifier.width,
        stages=params.classifier.stages,
    )
    yield classifier.build(settings), params.classifier.training
    for name, section in params.parts.items():
        part = methods.parts(section.kind).build_part(name, section, paths.DECOMPOSED / section.dataset)
        if any(student.teacher == section.method for student in params.students.values()):
            target = paths.MODELS / section.method / name
            target.mkdir(parents=True)
            part.save(target)
        yield part, section.training
    for name, student in params.students.items():
        (teacher,) = paths.parts_of(student.teacher)
        build = methods.parts(student.kind).build_student
        yield build(name, student, paths.DECOMPOSED / student.dataset, teacher), student.training
