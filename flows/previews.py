"""What trainings have learnt so far: the pictures of `stages.common.previews`, as soon as there is a newer one."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from stages.common.paths import PREVIEWS


def picture_of(address: str) -> Path:
    """The newest picture of the training that a stage runs."""
    return PREVIEWS / address.partition("@")[2] / "latest.png"


def title_of(picture: Path) -> str:
    """What a picture says of itself: `dit after 8,000 of 20,000 images`."""
    with Image.open(picture) as found:
        return str(found.info["Title"])


class Previews:
    """Knows which pictures it has shown; those of earlier runs count as shown."""

    def __init__(self) -> None:
        self.shown = {path: path.stat().st_mtime_ns for path in PREVIEWS.glob("*/latest.png")}

    def fresh(self, addresses: Iterable[str]) -> list[Path]:
        """The newest pictures of stages, those that were not given before."""
        found = []
        for path in map(picture_of, addresses):
            if path.exists() and (drawn := path.stat().st_mtime_ns) != self.shown.get(path):
                self.shown[path] = drawn
                found.append(path)
        return found
