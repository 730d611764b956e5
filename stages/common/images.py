"""The images of the dataset, of which `download` makes two outputs.

data/images.parquet has a row for each: id, split, label, perhaps a caption. data/pixels/SPLIT has their pixels, in
shards of safetensors that stages map into memory: no stage decodes them again.
"""

from __future__ import annotations

import json
import logging
import warnings
from typing import Any

import polars as pl
import pyarrow.parquet as pq
import torch

from multiscale.core import intact
from multiscale.core.storage import Table, shards_in
from stages.common.errors import BadInput
from stages.common.paths import IMAGES, PIXELS, TRAIN

SCHEMA = {"id": pl.String, "split": pl.String, "label": pl.Int64}
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".ppm", ".tif", ".tiff"}
CAPTION = "caption"  # a further column of images with captions
CLASS_NAMES = b"classes"  # metadata: a list in JSON, in the order of the labels
FACTORS = b"factors"  # metadata: a list in JSON, the number of values of each factor that a label consists of

# What Pillow says of a file that it reads names no file; a fault is one line of the stage, by the error that it raises.
warnings.filterwarnings("ignore", module="PIL")
logging.getLogger("PIL").setLevel(logging.CRITICAL)


def _about(key: bytes) -> list[Any]:
    found: list[Any] = json.loads((pq.read_metadata(IMAGES).metadata or {}).get(key, b"[]"))
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


def evenly(total: int, count: int) -> torch.Tensor:
    """`count` of `total` rows at equal strides, so that a dataset sorted by class keeps its classes."""
    return torch.arange(count) * total // count


def check(split: str) -> None:
    """Reads the pixels of a split once. Raises Damaged, and BadInput where the data has none."""
    if PIXELS.is_dir() and not (PIXELS / split).is_dir():
        raise BadInput(f"{PIXELS}: the data set has no images of split '{split}'; see data.{split}_share")
    intact.check(PIXELS / split)


def training_pixels(rows: torch.Tensor) -> torch.Tensor:
    """The pixels (n, C, H, W) of some training images, rows (n,); only the shards that hold them are read."""
    table, names = Table.open(TRAIN), [path.name for path in shards_in(TRAIN)]
    intact.check_folder(TRAIN, *(names[shard] for shard in table.arrays["pixels"].shards_of(rows.numpy())))
    return table[rows]["pixels"]


def pixel_table(split: str) -> Table:
    """The pixels (N, C, H, W) and labels of a split, mapped into memory."""
    return Table.open(PIXELS / split)
