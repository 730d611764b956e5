"""Checkpoints for resuming: one safetensors file each, written atomically to a scratch folder."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from multiscale.core import intact
from multiscale.core.storage import CHECKSUM, atomic_file
from multiscale.training.parallel import laid_out

log = logging.getLogger(__name__)
KEEP = 2  # if the newest one is damaged, only one interval is lost


class Checkpoints:
    """The checkpoints of one training run, in a folder named after its key.

    The key covers everything that decides the result (settings, inputs and code), so a changed run never resumes from
    the weights of another.
    """

    def __init__(self, scratch: Path, name: str, key: str):
        self.folder = Path(scratch) / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"

    def save(self, images: int, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Writes the state after `images` training images and deletes all but the newest two."""
        path = self.folder / f"{images:012d}.safetensors"
        with atomic_file(path) as temporary:
            whole = {key: value.detach().contiguous() for key, value in tensors.items()}
            save_file(whole, temporary, {"state": json.dumps({CHECKSUM: intact.BLANK, **state})})  # near the start
            intact.seal_file(temporary)
        for old in self._newest_first()[KEEP:]:
            old.unlink(missing_ok=True)  # a worker of a lost node may still be writing the same files

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest intact checkpoint as (tensors, state), or None. Damaged files are skipped with a warning."""
        for path in self._newest_first():
            try:
                intact.check_file(path)
                with safe_open(path, "pt") as file:
                    state = json.loads(file.metadata()["state"])
                    del state[CHECKSUM]
                    return {key: file.get_tensor(key) for key in file.keys()}, state
            except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
                log.warning("skipping the checkpoint %s: %s", path, getattr(error, "why", error))
        return None

    def clear(self) -> None:
        """Deletes the checkpoints, once the result is written."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _newest_first(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.safetensors"), reverse=True)


def flatten_optimizer(prefix: str, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's per-parameter tensors under flat names."""
    return {
        f"{prefix}.{index}.{name}": value
        for index, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
    }


def restore_optimizer(prefix: str, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Undoes `flatten_optimizer`, with each tensor in its parameter's layout, as the fused optimiser requires."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(f"{prefix}."):
            index, name = key.removeprefix(f"{prefix}.").split(".", 1)
            like = parameters[int(index)]
            fitted = laid_out(value, like) if value.shape == like.shape else value
            state.setdefault(int(index), {})[name] = fitted
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
