"""Captions beside images: metadata.csv or .jsonl of the hub's image folders, COCO's JSON, a text file an image."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath

import polars as pl

from stages.common.errors import refuse
from stages.common.paths import EXPERIMENT
from stages.datasets.item import readable

COCO = re.compile(r"captions_\w+\.json")
FILE = "file_name"  # the column that names an image, relative to the folder of the metadata
READERS = {"metadata.csv": lambda file: pl.read_csv(file, infer_schema=False), "metadata.jsonl": pl.read_ndjson}


def captions(images: Iterable[str], readers: Mapping[str, Callable[[], bytes]], column: str) -> dict[str, str]:
    """The captions of images by their paths, from the files beside them: name -> reader of its bytes.

    Where there is a file of metadata, the captions are in its `column`; images that it does not name have none. In
    captions_NAME.json of COCO an image has several: the first counts. Elsewhere they are in files of text, name.txt
    beside name.jpg. Raises BadInput for a file that cannot be read.
    """
    tables = [name for name in sorted(readers) if PurePosixPath(name).name in READERS]
    if tables:
        return {name: text for table in tables for name, text in _in_table(table, readers[table], column).items()}
    if tables := [name for name in sorted(readers) if COCO.fullmatch(PurePosixPath(name).name)]:
        of_file = {file: text for table in tables for file, text in _in_coco(table, readers[table], column).items()}
        return {name: of_file.get(PurePosixPath(name).name, "") for name in images}
    texts = {name: PurePosixPath(name).with_suffix(".txt").as_posix() for name in images}
    return {name: _decoded(text, readers[text]) for name, text in texts.items() if text in readers}


def _in_coco(path: str, read: Callable[[], bytes], column: str) -> dict[str, str]:
    allowed = f"{path} as COCO writes it, whose annotations have this key"
    with readable(f"{EXPERIMENT}: data.caption_column: {column!r}", allowed):
        told = json.loads(read())
        found = {row["image_id"]: row[column] for row in sorted(told["annotations"], key=lambda row: -row["id"])}
        return {row["file_name"]: " ".join(found.get(row["id"], "").split()) for row in told["images"]}


def _in_table(path: str, read: Callable[[], bytes], column: str) -> dict[str, str]:
    place = PurePosixPath(path)
    with readable(path, place.suffix[1:]):
        table = READERS[place.name](io.BytesIO(read()))
        if FILE not in table.columns:
            raise refuse(path, "columns", table.columns, f"a column {FILE}")
        if table.schema.get(column) != pl.String:
            allowed = f"a column of text ({path} has {', '.join(table.columns)})"
            raise refuse(EXPERIMENT, "data.caption_column", column, allowed)
        named = table.select(pl.col(FILE).cast(pl.String), pl.col(column).fill_null(""))
        return {(place.parent / name).as_posix(): text for name, text in named.iter_rows() if name}


def _decoded(path: str, read: Callable[[], bytes]) -> str:
    with readable(path, "text in UTF-8"):
        return " ".join(read().decode().split())
