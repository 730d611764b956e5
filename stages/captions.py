"""Collects the prompts to sample from in data/captions/NAME/prompts.parquet, each with its label or null.

Sources (params: text.NAME.prompts):
  pictures   the captions of a split of the dataset, with the labels of their pictures
  file       a Parquet file with a column of text, or a text file with one prompt per line
  hub        the Parquet files of a dataset on the Hugging Face Hub
"""

from __future__ import annotations

from stages.common.harness import command

if __name__ == "__main__":  # first: the imports below take seconds
    command(__doc__, {"name": "a key of `text`"})

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from multiscale.core import intact
from multiscale.core.storage import sealed_folder
from stages.common import fetch, images
from stages.common.errors import BadInput, one_line, refuse
from stages.common.paths import CAPTIONS, EXPERIMENT, IMAGES, PROMPTS
from stages.schema import Experiment
from stages.schema.prompts import Prompts

SCHEMA = {"prompt": pl.String, "label": pl.Int64}


def collect(section: Prompts, key: str) -> pl.DataFrame:
    """The prompts and labels of a section, of which `key` is the place in the experiment. Raises BadInput."""
    if section.source == "pictures":
        intact.check(IMAGES)
        return images.captions(section.split).select(prompt=images.CAPTION, label="label")
    if section.source == "hub":
        folder = fetch.snapshot(str(section.url), str(section.revision), f"{key}.url")
        tables = sorted(folder.rglob("*.parquet"))
        if not tables:
            raise refuse(EXPERIMENT, f"{key}.url", section.url, "a data set of Parquet files")
        return _of_tables(tables, section, key)
    path = Path(section.path)
    if not path.is_file():
        raise refuse(EXPERIMENT, f"{key}.path", section.path, "an existing Parquet or text file")
    with open(path, "rb") as file:
        if file.read(4) == b"PAR1":
            return _of_tables([path], section, key)
    try:
        return pl.DataFrame({"prompt": path.read_text("utf-8").splitlines(), "label": None}, schema=SCHEMA)
    except UnicodeDecodeError as error:
        raise refuse(EXPERIMENT, f"{key}.path", section.path, f"Parquet, or text in UTF-8 ({error})") from None


def _of_tables(paths: Iterable[Path], section: Prompts, key: str) -> pl.DataFrame:
    found = []
    for path in paths:
        try:
            schema = pl.read_parquet_schema(path)
        except (pl.exceptions.PolarsError, OSError) as error:
            why = one_line(error)
            raise refuse(EXPERIMENT, f"{key}.path", section.path, f"files that are intact ({path}: {why})") from None
        has = f"({path} has {', '.join(schema)})"
        if schema.get(section.column) != pl.String:
            raise refuse(EXPERIMENT, f"{key}.column", section.column, f"a column of text {has}")
        kind = schema.get(section.label_column) if section.label_column else None
        if section.label_column and not (kind and kind.is_integer()):
            raise refuse(
                EXPERIMENT, f"{key}.label_column", section.label_column, f"a column of integers, or null {has}"
            )
        label = pl.col(section.label_column) if section.label_column else pl.lit(None)
        found.append(pl.read_parquet(path).select(prompt=section.column, label=label.cast(pl.Int64)))
    return pl.concat(found)


def main(params: Experiment, name: str) -> None:
    if name not in params.text:
        raise refuse("captions", "NAME", name, f"one of {', '.join(params.text) or 'none'}")
    section, key = params.text[name].prompts, f"text.{name}.prompts"
    prompts = collect(section, key)
    prompts = prompts.head(section.limit or len(prompts))
    if not len(prompts):
        raise BadInput(f"{EXPERIMENT}: {key}: holds no prompts; allowed: at least one")
    for row, prompt in enumerate(prompts["prompt"]):
        if not (prompt or "").strip():
            raise refuse(EXPERIMENT, key, prompt, f"a text in every row (row {row} is empty)")
    with sealed_folder(CAPTIONS / name) as folder:
        prompts.write_parquet(folder / PROMPTS)
    print(f"{len(prompts)} prompts, {prompts['prompt'].n_unique()} different ones")
