"""The autoencoder travels with what it has encoded: from latents to decompositions to models, so each can be decoded.

Methods on pixels have none: nothing that they make depends on it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

BESIDE = "autoencoder"


def begin(vae: Path, out: Path) -> None:
    """Puts a `vae` stage's autoencoder beside the latents in `out`; does nothing where it stands for pixels."""
    if (vae / "config.json").exists():
        (out / BESIDE).mkdir()
        for path in (vae / "config.json", *vae.glob("*.safetensors")):
            shutil.copyfile(path, out / BESIDE / path.name)


def carry(source: Path, out: Path) -> None:
    """Copies the autoencoder of the folder `source` into the folder `out`; does nothing where there is none."""
    if (source / BESIDE).is_dir():
        shutil.copytree(source / BESIDE, out / BESIDE)
