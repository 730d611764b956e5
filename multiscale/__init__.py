"""Multi-scale image generation: methods, networks, samplers. Runs without the stages and flows of the pipeline.

model = multiscale.load("models/msf")
images = model.sample(classes=[3, 7], seeds=[0, 1])  # (N, C, H, H) in [0, 1]
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiscale.core.settings import Sampled
    from multiscale.model import Model


def load(folder: str | Path, settings: Sampled | None = None, precision: str = "auto") -> Model:
    """The trained method in a folder, models/METHOD, with its sampler; see `multiscale.model.load`.

    settings: its solvers, a `METHOD` of the method's `settings`; None: the default ones. precision: 'auto', 'fp32' or
    'bf16'. Raises ValueError for a folder that is no trained method of this version, or is damaged.
    """
    from multiscale import model, prompts  # here, because torch takes seconds to import
    from multiscale.core import models

    sampler = model.load(Path(folder), settings, precision)
    configs = [models.about(part) for part in model.parts_in(Path(folder))]
    return model.Model(sampler, 0 if prompts.reads_text(Path(folder)) else model.classes_of(configs))
