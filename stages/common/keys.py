"""The keys of caches: digests of everything that decides a result.

They address checkpoints, images of a teacher, and results and records of a sweep's trials. A change of anything that
decides a result changes its key, so stale results are never found.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from multiscale.training.checkpoint import digest_files
from stages.common.errors import missing

ROOT = Path(__file__).parents[2]
NEUTRAL = ("stages/schema/", "stages/cluster.py")  # code that decides what is allowed or where it runs, not results


def key(settings: dict[str, Any], inputs: Iterable[Path], code: Iterable[Path]) -> str:
    """A digest of the settings, the contents of input files and folders, the code, and torch's version.

    16 hexadecimal digits. Raises BadInput for a missing input.
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
    """The modules of `multiscale` and `stages` that this process has imported, including the running stage."""
    files = {Path(file) for module in [*sys.modules.values()] if (file := getattr(module, "__file__", None))}
    return sorted(file for file in files if any(file.is_relative_to(ROOT / name) for name in ("multiscale", "stages")))
