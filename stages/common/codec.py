"""Copies the autoencoder from latents to decompositions to models, so that each of them can be decoded.

Methods on pixels have none, and do not depend on it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from multiscale.core.models import AUTOENCODER, IMAGES


def begin(vae: Path, out: Path, channels: int) -> None:
    """Copies the autoencoder of the stage `vae`, if there is one, into `out`; `channels` of the images."""
    if (vae / "config.json").exists():
        (out / AUTOENCODER).mkdir()
        for path in (vae / "config.json", *vae.glob("*.safetensors")):
            shutil.copyfile(path, out / AUTOENCODER / path.name)
        (out / AUTOENCODER / IMAGES).write_text(json.dumps({"channels": channels}) + "\n")


def carry(source: Path, out: Path) -> None:
    """Copies the autoencoder in the folder `source`, if there is one, into the folder `out`."""
    if (source / AUTOENCODER).is_dir():
        shutil.copytree(source / AUTOENCODER, out / AUTOENCODER)
