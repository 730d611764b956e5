"""The data set's Parquet: one row an image (id, split, label, width, height, encoded bytes), read with polars."""

from __future__ import annotations

import io
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import torch
from PIL import Image

from multiscale.core.storage import Table, TensorWriter
from stages.common.paths import IMAGES, SCRATCH
from stages.common.settings import BadInput

SCHEMA = {
    "id": pl.String,
    "split": pl.String,
    "label": pl.Int64,
    "width": pl.Int32,
    "height": pl.Int32,
    "image": pl.Binary,
}


def classes(path: Path = IMAGES) -> int:
    """The number of classes, 1 for an unlabelled set."""
    return int(pl.scan_parquet(path).select(pl.col("label").max()).collect().item() or 0) + 1


def class_counts(path: Path = IMAGES) -> torch.Tensor:
    """The number of training images of each class, (classes,)."""
    labels = pl.scan_parquet(path).filter(pl.col("split") == "train").select("label").collect()["label"]
    return torch.bincount(torch.from_numpy(labels.to_numpy().copy()), minlength=classes(path))


def count(split: str, path: Path = IMAGES) -> int:
    """The number of images of a split."""
    return pl.scan_parquet(path).filter(pl.col("split") == split).select(pl.len()).collect().item()


def decode(encoded: bytes) -> np.ndarray:
    """Encoded bytes -> uint8 (C, H, W)."""
    array = np.asarray(Image.open(io.BytesIO(encoded)))
    return array[None] if array.ndim == 2 else np.ascontiguousarray(array.transpose(2, 0, 1))


def evenly(total: int, count: int) -> torch.Tensor:
    """`count` of `total` rows in equal strides, so that a set sorted by class keeps its classes."""
    return torch.arange(count) * total // count


def some(split: str, rows: list[int], path: Path = IMAGES) -> torch.Tensor:
    """The pixels (n, C, H, W) of a few rows of a split, the others not decoded."""
    frame = pl.scan_parquet(path).filter(pl.col("split") == split).select("image").with_row_index("row")
    found = dict(frame.filter(pl.col("row").is_in(rows)).collect().iter_rows())
    return torch.from_numpy(np.stack([decode(found[row]) for row in rows]))


def pixel_table(split: str, path: Path = IMAGES) -> Table:
    """The pixels (N, C, H, W) and labels of a split as a memory-mapped table, decoded row group by row group.

    The mapped file is unlinked at once: it lives as long as the table and can be left behind by no crash.
    """
    file = pq.ParquetFile(path)
    frame = pl.scan_parquet(path).filter(pl.col("split") == split)
    total = count(split, path)
    if not total:
        raise BadInput(f"{path}: it has no images of split '{split}'; allowed: a set with some")
    first = decode(frame.select("image").head(1).collect().item())
    SCRATCH.mkdir(exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=SCRATCH, suffix=".safetensors") as scratch, ThreadPoolExecutor(2) as pool:
        writer = TensorWriter(
            Path(scratch.name), {"pixels": (np.uint8, (total, *first.shape)), "label": (np.int64, (total,))}
        )
        start = 0
        for group in range(file.num_row_groups):
            rows = pl.from_arrow(file.read_row_group(group, ["split", "label", "image"])).filter(
                pl.col("split") == split
            )
            if len(rows):
                writer.write("pixels", start, torch.from_numpy(np.stack(list(pool.map(decode, rows["image"])))))
                writer.write("label", start, torch.from_numpy(rows["label"].to_numpy().copy()))
                start += len(rows)
        writer.close()
        return Table.open(Path(scratch.name))
