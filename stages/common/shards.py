"""Shards, the safetensors that a stage writes one after the other, each of them on one worker.

Until all are there they are in the scratch folder: an interrupted stage goes on with those that are missing. It ends in
the same bytes, as with any number of workers.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from multiscale.core import intact
from multiscale.core.storage import CHECKSUM, TensorWriter, atomic_file, metadata_of
from stages.common.cluster import pool
from stages.common.harness import progress, tell
from stages.common.paths import SCRATCH
from stages.schema.data import Run

ROWS = 1024  # of a shard at most: what is lost when a stage is killed, and the share of a worker
BYTES = 1 << 26  # of a shard at most, so that a worker can hold some
ABOUT = "about"


@dataclass(frozen=True)
class Share:
    """The rows of one shard, their number, and what the worker is told of them."""

    name: str
    rows: int
    told: tuple[Any, ...]


def slices(count: int, row_bytes: int) -> Iterator[slice]:
    """Rows 0 to count-1, shard by shard: as many rows as fit, a power of two."""
    rows = min(ROWS, 1 << max(0, (BYTES // row_bytes).bit_length() - 1))
    return (slice(start, min(start + rows, count)) for start in range(0, count, rows))


def folder_of(title: str, key: str) -> Path:
    """Where the shards of a stage are until all are there; those of the same stage with another key are deleted."""
    parent = SCRATCH / "shards" / title.replace(" ", "-")
    for other in parent.glob("*"):
        if other.name != key:
            shutil.rmtree(other)
    return parent / key


def write(title: str, run: Run, make: Callable[[], Any], folder: Path, shares: list[Share]) -> list[Path]:
    """The shards, in the order of the shares: object.write(path, *told) of make() writes those that are missing."""
    paths = {share.name: folder / f"{share.name}.safetensors" for share in shares}
    missing = [share for share in shares if not _is_whole(paths[share.name])]
    count, left = (sum(share.rows for share in each) for each in (shares, missing))
    if left < count:
        tell(title, f"{count - left} of {count} images are there already")
    with pool(title, run, make) as workers, progress(title, left) as reach:
        done = 0
        written = workers.map("write", ((paths[share.name], *share.told) for share in missing))
        for share, _ in zip(missing, written):
            done += share.rows
            reach(done)
    return list(paths.values())


def save(path: Path, tensors: Mapping[str, Tensor], about: object = None) -> None:
    """Writes a shard, sealed; `about`, which `about_of` reads, is anything that JSON holds."""
    arrays = {name: each.numpy() for name, each in tensors.items()}
    shapes = {name: (array.dtype.type, array.shape) for name, array in arrays.items()}
    with atomic_file(path) as temporary:
        # Not safetensors' own writer, which holds all bytes once more and puts metadata in any order.
        writer = TensorWriter(temporary, shapes, {CHECKSUM: intact.BLANK, ABOUT: json.dumps(about)})
        for name, rows in tensors.items():
            writer.write(name, 0, rows)
        writer.close()
        intact.seal_file(temporary)


def about_of(shard: Path) -> Any:
    """What was told of a shard."""
    return json.loads(metadata_of(shard)[ABOUT])


def take(shards: Iterable[Path], folder: Path) -> None:
    """Puts shards into the folder of an output, without a copy where it is on the same disk."""
    folder.mkdir(exist_ok=True)
    for shard in shards:
        try:
            os.link(shard, folder / shard.name)
        except OSError:  # .scratch may be on another disk
            shutil.copyfile(shard, folder / shard.name)


def _is_whole(shard: Path) -> bool:
    try:
        intact.check_file(shard)
    except (FileNotFoundError, intact.Damaged):
        return False
    return True
