"""Checkpoints of sharded networks, by torch.distributed.checkpoint: a folder in which each worker writes its shards.

The list of checksums comes last: a folder without one is no checkpoint. torch's module, which takes a second, is
imported where it is needed.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from multiscale.core import intact
from multiscale.core.storage import read_json, write_json

STATE = "state.json"
Blank = Callable[[str, torch.Size, torch.dtype], Tensor]


def save(folder: Path, tensors: dict[str, Tensor], state: dict[str, Any], group: dist.ProcessGroup) -> None:
    """Writes this worker's shards; the first worker also the state, and the list. A collective call of the group.

    They are on the CPU. So nothing is copied ahead, for which torch would wait, in a thread that does not know the GPU
    of this worker, until the first one has done what it was told.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save as save_from

    first = dist.get_rank(group) == 0
    if first:
        (folder / intact.LIST).unlink(missing_ok=True)  # of a checkpoint that is written anew
    writer = FileSystemWriter(folder, per_thread_copy_ahead=0)
    save_from(dict(tensors), storage_writer=writer, process_group=group)
    if first:
        write_json(folder / STATE, state)
        intact.seal_folder(folder)


def load(folder: Path, blank: Blank) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the state, read into what `blank(name, shape, dtype)` returns, of which a shard is enough.

    The number of workers may be another than when it was written. No collective call.
    """
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.state_dict_loader import load as load_into

    about: dict[str, Any] = FileSystemReader(folder).read_metadata().state_dict_metadata
    tensors = {key: blank(key, entry.size, entry.properties.dtype) for key, entry in about.items()}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        load_into(tensors, storage_reader=FileSystemReader(folder), no_dist=True)
    return tensors, read_json(folder / STATE)
