"""Multi-scale image generation: methods, networks, samplers. Runs without the stages and flows of the pipeline.

sampler = multiscale.load("models/msf")
images = sampler(seeds=[0, 1], labels=torch.tensor([3, 7]))  # (N, C, H, H) in [0, 1]
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiscale.core.settings import Sampled
    from multiscale.sampling import Sampler


def load(folder: str | Path, settings: Sampled | None = None, precision: str = "auto") -> Sampler:
    """The sampler of a trained method; see `multiscale.sampling.load`."""
    from multiscale import sampling  # here, because torch takes seconds to import

    return sampling.load(Path(folder), settings, precision)
