"""Items of Parquet files, whose image column holds encoded bytes, or structs {bytes, path} as on the hub."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, cast

import polars as pl
import pyarrow.parquet as pq

from stages.common.errors import refuse
from stages.common.paths import EXPERIMENT
from stages.datasets.archives import refuse_path, whole
from stages.datasets.item import SPLITS, Item, split_by_hash, split_in
from stages.schema.data import Data

BLOCK = 256  # rows that are read at once
LABELS = "a column of text or integers, with a value in each row"


def items(paths: list[Path], folder: Path, data: Data) -> list[Item]:
    """Items of all rows, file by file.

    The split of a row is in the column `split`, or a word of the file's path, or decided by a hash of its name.
    """
    found: list[tuple[str, str, Any, str, Callable[[], bytes]]] = []
    for path in paths:
        with whole(path):
            found += _rows(path, path.relative_to(folder).with_suffix("").as_posix(), data)
    kinds = {label for _, _, label, _, _ in found}
    if None in kinds or len({type(kind) for kind in kinds}) > 1:  # one file may hold text and another integers
        raise refuse(EXPERIMENT, "data.label_column", data.label_column, LABELS)
    labels = {kind: index for index, kind in enumerate(sorted(kinds))}
    named = _label_names(paths[0], data.label_column)
    kinds_of = {label: named.get(label, str(label)) if data.label_column else "" for label in kinds}
    return [
        Item(name, split, labels[label], read, kinds_of[label], caption) for name, split, label, caption, read in found
    ]


def _label_names(path: Path, column: str | None) -> dict[Any, str]:
    """The names of integer labels, where a Parquet file has those of a `ClassLabel` of the library datasets."""
    try:
        names = json.loads((pq.read_schema(path).metadata or {}).get(b"huggingface", b"{}"))
        for key in ("info", "features", column or "", "names"):
            names = names[key]
        return dict(enumerate(map(str, names)))
    except (ValueError, LookupError, TypeError, RecursionError):  # another form of the metadata
        return {}


def _rows(path: Path, stem: str, data: Data) -> Iterator[tuple[str, str, Any, str, Callable[[], bytes]]]:
    """Yields (id, split, raw label, caption, reader) for each row of a Parquet file."""
    schema = pl.Schema(pl.read_parquet_schema(path))
    column = cast(Any, schema.get(data.image_column))
    is_struct = isinstance(column, pl.Struct)
    if (column.to_schema().get("bytes") if is_struct else column) != pl.Binary:
        allowed = f"a column of encoded images ({path} has {', '.join(schema)})"
        raise refuse(EXPERIMENT, "data.image_column", data.image_column, allowed)
    kind = schema.get(data.label_column) if data.label_column else None
    if data.label_column and not (kind and (kind.is_integer() or kind in (pl.String, pl.Categorical, pl.Enum))):
        allowed = f"{LABELS}, or null for an unlabelled dataset ({path} has {', '.join(schema)})"
        raise refuse(EXPERIMENT, "data.label_column", data.label_column, allowed)
    if data.caption_column and schema.get(data.caption_column) != pl.String:
        allowed = f"a column of text ({path} has {', '.join(schema)})"
        raise refuse(EXPERIMENT, "data.caption_column", data.caption_column, allowed)
    label = pl.col(data.label_column) if data.label_column else pl.lit(0)
    caption = pl.col(data.caption_column).fill_null("") if data.caption_column else pl.lit("")
    split = split_in(stem)
    if schema.get("split", pl.Null) not in (pl.Null, pl.String, pl.Categorical, pl.Enum):
        raise refuse_path(path, f"a column of text as its column split ({schema['split']})")
    splits = pl.col("split").cast(pl.String) if "split" in schema else pl.lit(split)
    # With the index there is one row an image even if label and split are constants.
    index = pl.int_range(pl.len())
    about = pl.scan_parquet(path).select(row=index, label=label, split=splits, caption=caption)
    for row, label_of, split_of, caption_of in about.collect().iter_rows():
        name = f"{stem}-{row:07d}"
        if split_of and split_of.lower() not in SPLITS:
            raise refuse(EXPERIMENT, "data.path", split_of, f"as a split of {path}: {', '.join(SPLITS)}")
        in_split = SPLITS[split_of.lower()] if split_of else split_by_hash(name, data)
        yield name, in_split, label_of, caption_of, partial(_row_bytes, path, data.image_column, is_struct, row)


def _row_bytes(path: Path, column: str, is_struct: bool, row: int) -> bytes:
    """The bytes of one row; rows are requested in order, so they are read in blocks."""
    return _block(path, column, is_struct, row // BLOCK)[row % BLOCK]


@lru_cache(maxsize=1)
def _block(path: Path, column: str, is_struct: bool, index: int) -> list[bytes]:
    image = pl.col(column).struct.field("bytes") if is_struct else pl.col(column)
    rows = pl.scan_parquet(path).slice(index * BLOCK, BLOCK).select(image=image).collect()
    return rows["image"].to_list()
