"""Checkpoints for resuming, written atomically to a scratch folder: a safetensors file each, or a folder of shards."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from multiscale.core import intact
from multiscale.core.storage import CHECKSUM, atomic_file
from multiscale.training import shards
from multiscale.training.parallel import Workers, laid_out

log = logging.getLogger(__name__)
KEEP = 2  # if the newest one is damaged, only one interval is lost
SHARE = 0.01  # of the time, which checkpoints may take
State = tuple[dict[str, Tensor], dict[str, Any]]


class Checkpoints:
    """The checkpoints of one training run, in a folder named after its key.

    The key covers everything that decides the result (settings, inputs and code), so a changed run never resumes from
    the weights of another.
    """

    def __init__(self, scratch: Path, name: str, key: str):
        self.folder = Path(scratch) / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        self.skipped: set[Path] = set()  # of more images than were gone on from, so that they would count as the newest

    def save(
        self,
        images: int,
        tensors: dict[str, Tensor],
        state: dict[str, Any],
        group: dist.ProcessGroup | None = None,
    ) -> None:
        """Writes the state after `images` training images and deletes all but the newest two, and those skipped.

        With a group its workers call it together, each with its own shards.
        """
        path = self.folder / (f"{images:012d}" if group else f"{images:012d}.safetensors")
        if group:
            shards.save(path, tensors, state, group)
        else:
            with atomic_file(path) as temporary:
                whole = {key: value.detach().contiguous() for key, value in tensors.items()}
                save_file(whole, temporary, {"state": json.dumps({CHECKSUM: intact.BLANK, **state})})  # near the start
                intact.seal_file(temporary)
        self.skipped.discard(path)
        found = self._newest_first()
        kept = [each for each in found if each not in self.skipped][:KEEP]
        for old in set(found) - set(kept) if not group or dist.get_rank(group) == 0 else ():
            shutil.rmtree(old, ignore_errors=True)
            old.unlink(missing_ok=True)  # a worker of a lost node may still be writing the same files

    def load(self, blank: shards.Blank = lambda key, size, dtype: torch.empty(size, dtype=dtype)) -> State | None:
        """The newest intact checkpoint as (tensors, state), or None. Damaged ones are skipped with a warning.

        blank: see `shards.load`.
        """
        for path in self._newest_first():
            try:
                intact.check(path)
                if path.is_dir():
                    return shards.load(path, blank)
                with safe_open(path, "pt") as file:
                    state = json.loads(file.metadata()["state"])
                    del state[CHECKSUM]
                    return {key: file.get_tensor(key) for key in file.keys()}, state
            except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
                place = getattr(error, "path", path)  # of a folder the shard
                log.warning("skipping the checkpoint %s: %s", place, getattr(error, "why", error))
                self.skipped.add(path)
        return None

    def clear(self) -> None:
        """Deletes the checkpoints, once the result is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*"), reverse=True)


class Writer:
    """Writes a run's checkpoints in a thread of its own, from copies in memory, while the training goes on.

    One is due `seconds` after the last, or later, so that copies and writes take at most 1 % of the time. With 0 one is
    due after every step, and waits for the one before. On leaving it the last one is written.
    """

    def __init__(self, checkpoints: Checkpoints, seconds: float, workers: Workers):
        self.checkpoints, self.seconds, self.workers = checkpoints, seconds, workers
        self.thread = ThreadPoolExecutor(1)
        self.pending: Future[float] | None = None
        self.began, self.copying = time.monotonic(), 0.0

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.thread.shutdown()
        if self.pending and kind is None:
            self.pending.result()

    def due(self) -> bool:
        """Whether it is time for another one. Raises what the last write has raised."""
        if not self.seconds or not self.pending:
            return time.monotonic() - self.began >= self.seconds
        if not self.pending.done():
            return False
        cost = self.copying + self.pending.result()
        return time.monotonic() - self.began >= max(self.seconds, cost / SHARE)

    def save(self, images: int, state: Callable[[], State]) -> None:
        """Copies the state after `images` training images, and has it written. A collective call of all workers."""
        if self.pending:
            self.pending.result()
        self.began = time.monotonic()
        tensors, about = state()
        if self.workers.rank == 0 or self.workers.mesh:  # elsewhere the first worker holds everything
            copies = {key: value.detach().to("cpu", copy=True) for key, value in tensors.items()}
            self.copying = time.monotonic() - self.began
            self.pending = self.thread.submit(self._write, images, copies, about)

    def _write(self, images: int, tensors: dict[str, Tensor], about: dict[str, Any]) -> float:
        """The seconds that it took."""
        started = time.monotonic()
        self.checkpoints.save(images, tensors, about, self.workers.writing)
        return time.monotonic() - started


def flatten_optimizer(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's per-parameter tensors under flat names."""
    return {
        f"{prefix}.{index}.{name}": value
        for index, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
    }


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Its parameters, in the order in which its state numbers them."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def restore_optimizer(prefix: str, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Undoes `flatten_optimizer`, with each tensor in its parameter's layout, as the fused optimiser requires."""
    parameters = parameters_of(optimizer)
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(f"{prefix}."):
            index, name = key.removeprefix(f"{prefix}.").split(".", 1)
            like = parameters[int(index)]
            fitted = laid_out(value, like) if value.shape == like.shape else value
            state.setdefault(int(index), {})[name] = fitted
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
