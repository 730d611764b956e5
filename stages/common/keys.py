"""The keys of caches: digests of everything that decides a result.

They address checkpoints, shards of a teacher's images, and results and records of a sweep's trials. A change of
anything that decides a result changes its key, so stale results are never found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from multiscale.core.storage import digest_files
from stages import code
from stages.common.errors import missing

ROOT = Path(__file__).parents[2]


def key(settings: dict[str, Any], inputs: Iterable[Path], lists: Iterable[str]) -> str:
    """A digest of the settings, the contents of input files and folders, the code, and torch's version.

    The code is that of lists of `stages.code`, made from the files as they are now. 16 hexadecimal digits. Raises
    BadInput for a missing input.
    """
    about = {
        "settings": settings,
        "inputs": digest_files(file for path in inputs for file in _files(path)),
        "code": {name: code.listing(name, ROOT) for name in lists},
        "torch": torch.__version__,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def _files(path: Path) -> list[Path]:
    if not path.exists():
        raise missing(path)
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
