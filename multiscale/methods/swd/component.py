"""SwD in diffusers: the network of a teacher or student, with the student's schedule in its config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from multiscale.core.models import ForeignModel
from multiscale.methods.swd.config import StudentConfig, TeacherConfig
from multiscale.methods.swd.sampler import SwDSampler, sampler_around
from multiscale.methods.swd.settings import SwDMethod
from multiscale.networks.autoencoder import Codec

PAPERS = {"2503.16397": "Scale-wise Distillation of Diffusion Models"}
CONFIGS: dict[Any, type[StudentConfig] | type[TeacherConfig]] = {"student": StudentConfig, "teacher": TeacherConfig}


def built(about: dict[str, Any]) -> tuple[StudentConfig | TeacherConfig, nn.Module]:
    """The config that `about` holds, and its network with random weights.

    Raises ForeignModel for a published teacher and for a LoRA on one, which are in the format of diffusers as they are.
    """
    if (role := about.get("role")) not in CONFIGS:
        raise ForeignModel(f"role: {role!r} is not allowed; allowed: a teacher or student that was trained here whole")
    config = CONFIGS[role].model_validate(about)
    return config, config.build()


def sampler(
    parts: Sequence[tuple[StudentConfig | TeacherConfig, nn.Module]], settings: SwDMethod, codec: Codec, precision: str
) -> SwDSampler:
    """The sampler of the one component."""
    ((config, net),) = parts
    return sampler_around(net, config, settings, codec, precision, None)
