"""Under which key a cache of our own keeps a result: a digest of all that decides it.

Checkpoints, images of a teacher, what the trials of a sweep share and their records: whatever changes one of them
changes its key, so that an old one is not found.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import torch

from multiscale.training.checkpoint import digest_files
from stages.common.errors import missing

ROOT = Path(__file__).parents[2]
NEUTRAL = ("stages/schema/", "/settings.py", "stages/cluster.py")  # they say what is allowed, and where it runs


def key(settings: dict, inputs: Iterable[Path], code: Iterable[Path]) -> str:
    """16 hexadecimal digits of the settings, the contents of files and folders, the code's files and torch's version.

    Raises BadInput for an input that is not there.
    """
    decisive = sorted(file for file in code if not any(name in file.as_posix() for name in NEUTRAL))
    about = {
        "settings": settings,
        "inputs": digest_files(file for path in inputs for file in _files(path)),
        "code": digest_files(decisive),
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise missing(path)
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def loaded() -> list[Path]:
    """The files of the science and of the stages that this process has loaded, the stage that it runs among them."""
    files = {Path(module.__file__) for module in [*sys.modules.values()] if getattr(module, "__file__", None)}
    return sorted(file for file in files if any(file.is_relative_to(ROOT / name) for name in ("multiscale", "stages")))
