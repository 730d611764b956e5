"""The Parquet of the dataset, one image a row: id, split, label, width, height, encoded bytes, perhaps a caption."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import torch
from PIL import Image

from multiscale.core.storage import Table, write_blocks
from stages.common.errors import BadInput
from stages.common.paths import IMAGES, SCRATCH

SCHEMA = {
    "id": pl.String,
    "split": pl.String,
    "label": pl.Int64,
    "width": pl.Int32,
    "height": pl.Int32,
    "image": pl.Binary,
}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff"}
CAPTION = "caption"  # a further column of images with captions
CLASS_NAMES = b"classes"  # metadata: a list in JSON, in the order of the labels
FACTORS = b"factors"  # metadata: a list in JSON, the number of values of each factor that a label consists of


def _about(key: bytes) -> list[Any]:
    found: list[Any] = json.loads((pq.read_schema(IMAGES).metadata or {}).get(key, b"[]"))
    return found


def class_names() -> list[str]:
    """The names of the classes in the order of their labels; [] where the data has none."""
    return _about(CLASS_NAMES)


def factors() -> list[int]:
    """The numbers of values of the factors that a label consists of, row-major; [] where it is one whole."""
    return _about(FACTORS)


def has_captions() -> bool:
    """Whether the images have captions."""
    return CAPTION in pq.read_schema(IMAGES).names


def captions(split: str) -> pl.DataFrame:
    """The columns caption and label of a split, in the order of `pixel_table`. Raises BadInput where there are none."""
    if not has_captions():
        raise BadInput(f"{IMAGES}: the images have no captions; see data.caption_column")
    return _of_split(split).select(CAPTION, "label").collect()


def classes() -> int:
    """The number of classes, 1 for an unlabelled dataset."""
    return int(pl.scan_parquet(IMAGES).select(pl.col("label").max()).collect().item() or 0) + 1


def _of_split(split: str) -> pl.LazyFrame:
    return pl.scan_parquet(IMAGES).filter(pl.col("split") == split)


def class_counts() -> torch.Tensor:
    """The number of training images in each class, (classes,)."""
    labels = _of_split("train").select("label").collect()["label"]
    return torch.bincount(torch.from_numpy(labels.to_numpy().copy()), minlength=classes())


def count(split: str) -> int:
    """The number of images in a split."""
    return int(_of_split(split).select(pl.len()).collect().item())


def decode(encoded: bytes) -> np.ndarray:
    """Decodes an image to uint8 (C, H, W)."""
    array = np.asarray(Image.open(io.BytesIO(encoded)))
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def evenly(total: int, count: int) -> torch.Tensor:
    """`count` of `total` rows at equal strides, so that a dataset sorted by class keeps its classes."""
    return torch.arange(count) * total // count


def some(split: str, rows: list[int]) -> torch.Tensor:
    """The pixels (n, C, H, W) of some rows of a split; no others are decoded."""
    frame = _of_split(split).select("image").with_row_index("row")
    found = dict(frame.filter(pl.col("row").is_in(rows)).collect().iter_rows())
    return torch.from_numpy(np.stack([decode(found[row]) for row in rows]))


def pixel_table(split: str) -> Table:
    """The pixels (N, C, H, W) and labels of a split as a memory-mapped table, decoded one row group at a time.

    The mapped file is deleted at once: it lives as long as the table, and a crash leaves nothing behind.
    """
    file = pq.ParquetFile(IMAGES)
    total = count(split)
    if not total:
        raise BadInput(f"{IMAGES}: the data set has no images of split '{split}'; see data.{split}_share")
    first = decode(_of_split(split).select("image").head(1).collect().item())

    def blocks(pool: ThreadPoolExecutor) -> Iterator[dict[str, torch.Tensor]]:
        for group in range(file.num_row_groups):
            read = pl.DataFrame(file.read_row_group(group, ["split", "label", "image"]))
            rows = read.filter(pl.col("split") == split)
            if len(rows):
                pixels = torch.from_numpy(np.stack(list(pool.map(decode, rows["image"]))))
                yield {"pixels": pixels, "label": torch.from_numpy(rows["label"].to_numpy().copy())}

    SCRATCH.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=SCRATCH, suffix=".safetensors") as scratch, ThreadPoolExecutor(2) as pool:
        shapes = {"pixels": (np.uint8, (total, *first.shape)), "label": (np.int64, (total,))}
        write_blocks(Path(scratch.name), shapes, blocks(pool))
        return Table.open(Path(scratch.name))
