"""The check of a trained teacher before it is sampled at several resolutions."""

from __future__ import annotations

from pathlib import Path

from multiscale.core import models
from multiscale.core.settings import Bad
from multiscale.methods.shift.settings import Shifted


def check(settings: Shifted, teacher: Path, pyramid: Path) -> None:
    """Raises Bad for a model that was not trained at random resolutions."""
    found = models.about(teacher)
    if (found.get("kind"), found.get("role")) != ("swd", "teacher"):
        allowed = f"a teacher of kind swd; {teacher} holds kind {found.get('kind')}, role {found.get('role')}"
        raise Bad("teacher", settings.teacher, allowed)
