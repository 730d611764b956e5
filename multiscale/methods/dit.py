"""DiT: one full-resolution rectified-flow transformer, the control. It is MSF with one scale (arXiv 2212.09748)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from multiscale.methods import msf

if TYPE_CHECKING:
    from multiscale.autoencoder import Codec

build_part = msf.build_part


def load_sampler(folders: list[Path], settings: dict, codec: Codec, precision: str) -> msf.MSFSampler:
    """The sampler of the one trained part."""
    return msf.load_sampler(folders, {"scales": [settings["solver"]]}, codec, precision)
