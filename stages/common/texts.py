"""Copies the embeddings of texts to decompositions, and those of the prompts on to models, to be sampled with them."""

from __future__ import annotations

import shutil
from pathlib import Path

import polars as pl
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from multiscale.core import intact
from multiscale.core.models import EMBEDDINGS, READER, TEXT, TEXT_ROWS
from multiscale.core.storage import Table
from stages.common import paths
from stages.common.paths import PROMPTS

PICTURES = {"train": "pictures", "validation": "held_out"}  # in TEXT_ROWS, the rows of a split


def captions(text: str, split: str) -> Tensor:
    """The row (N,) of each image's caption in the embeddings of a text encoder."""
    return load_file(paths.EMBEDDINGS / text / TEXT_ROWS)[PICTURES[split]]


def begin(text: str, out: Path) -> None:
    """Puts the embeddings of a text encoder, and the prompts with their rows, into the folder of a decomposition."""
    (out / TEXT).mkdir()
    for name in (EMBEDDINGS, TEXT_ROWS, PROMPTS, READER):
        shutil.copyfile(paths.EMBEDDINGS / text / name, out / TEXT / name)


def carry(decomposition: Path, out: Path) -> None:
    """Puts the prompts of a decomposition, if it has some, into the folder of a model: row 1 + k is prompt k."""
    source = decomposition / TEXT
    if not source.is_dir():
        return
    (out / TEXT).mkdir()
    rows = load_file(source / TEXT_ROWS)["prompts"]
    table = Table.open(source / EMBEDDINGS, "prompt", "pooled")
    chosen = torch.cat([rows.new_zeros(1), rows])
    kept = {name: torch.from_numpy(table.arrays[name][chosen.numpy()]) for name in ("prompt", "pooled")}
    save_file(kept, out / TEXT / EMBEDDINGS)
    for name in (PROMPTS, READER):
        shutil.copyfile(source / name, out / TEXT / name)


def prompts(method: Path) -> pl.DataFrame | None:
    """The prompts of a trained method, with their labels or nulls, in the order of their rows from 1 on; None: no text.

    They are in the folder of its part.
    """
    path = next(method.glob(f"[!.]*/{TEXT}/{PROMPTS}"), None)
    if path is None:
        return None
    intact.check_folder(path.parents[1], f"{TEXT}/{PROMPTS}")
    return pl.read_parquet(path)
