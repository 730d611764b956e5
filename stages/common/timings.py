"""What stages measure of the machine: seconds and memory, in reports/timing, of which neither git nor DVC know.

A file names the result that it was measured with, by its digest, and is read beside that result alone: what another
experiment or another machine left is never shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from multiscale.core import storage
from multiscale.core.intact import Damaged
from multiscale.core.storage import read_sealed_json, sha256_of, write_sealed_json
from stages.common.paths import TIMINGS


def write(name: str, of: Path, measured: Mapping[str, Any]) -> None:
    """Writes what was measured while the file `of` was made into reports/timing/NAME.json."""
    write_sealed_json(TIMINGS / f"{name}.json", {"of": sha256_of(of), **measured})


def check_place(name: str) -> None:
    """Raises OSError where `write` could not write."""
    storage.check_place(TIMINGS / f"{name}.json", folder=False)


def read(name: str, of: Path) -> dict[str, Any]:
    """What was measured while the file `of` was made; empty if that was elsewhere, or the file is damaged."""
    try:
        found = read_sealed_json(TIMINGS / f"{name}.json")
    except (FileNotFoundError, Damaged):
        return {}
    return found if found.get("of") == sha256_of(of) else {}
