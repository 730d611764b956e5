"""MSF's parts: a rectified-flow DiT for each scale (arXiv 2501.13349, section 3.3).

Scale 0 generates the base from the class alone. Each later scale generates a residual, given the input prior: the
latent so far, concatenated along channels. With one scale this is DiT (arXiv 2212.09748), the control.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from multiscale import flow
from multiscale.condition import Classes
from multiscale.core.models import ModelConfig
from multiscale.core.normalisation import Normalisation
from multiscale.core.storage import Table, read_json
from multiscale.core.streams import Draws, Held
from multiscale.guidance import concatenated
from multiscale.methods.msf.residual import prior
from multiscale.methods.msf.settings import FlowPart
from multiscale.networks.dit import DiT, DiTNetwork
from multiscale.training.part import Batch, Data, Loss, Nets, Part


class ScaleConfig(ModelConfig):
    """The DiT of one scale, and the statistics that its training and its sampler share."""

    kind: Literal["msf"] = "msf"
    role: Literal["scale"] = "scale"
    index: int
    """its scale; 0: the coarsest"""
    resolutions: list[int]
    """of the latents of all scales, coarsest first"""
    target: Normalisation
    """of y_k"""
    latent: Normalisation
    """of the full latents, before their decomposition"""
    classes: int
    network: DiTNetwork

    def build(self) -> DiT:
        """The network with random weights. From scale 1 on, its input is the noisy target and the prior."""
        channels = self.target.channels
        return self.network.build(channels * (2 if self.index else 1), channels, self.classes)


class ScalePart(Part):
    """The flow of one scale (eq. 5), whose prior is made of the data's y_0 ... y_{k-1} (teacher forcing)."""

    config: ScaleConfig

    def __init__(self, name: str, data: Data, net: DiT, config: ScaleConfig, settings: FlowPart):
        super().__init__(name, data, {"net": net}, config)
        self.index, self.resolutions, self.target = config.index, config.resolutions, config.target
        self.settings, self.conditioner = settings, Classes(config.classes)

    def loss(self, network: str, nets: Nets, batch: Batch, draws: Draws) -> Loss:
        condition = self.conditioner(batch["label"]).dropped(self.settings.label_dropout, draws)
        before, data = self._given(batch)
        if (
            before is not None and self.settings.prior_noise
        ):  # against the gap between the data's prior and a sampled one
            before = before + self.settings.prior_noise * draws.normal("prior", *before.shape[1:])
        net = concatenated(nets["net"], before)
        return flow.loss(lambda x, t: net(x, t, *condition.given), data, draws, self.settings.timesteps), {}

    def errors(self, net: nn.Module, batch: Batch, held: Held) -> Tensor:
        """`flow.errors` of the normalised target, after the data's own prior."""
        condition = self.conditioner(batch["label"])
        before, data = self._given(batch)
        predict = concatenated(net, before)
        return flow.errors(lambda x, t: predict(x, t, *condition.given), data, held)

    def _given(self, batch: Batch) -> tuple[Tensor | None, Tensor]:
        """The prior of the scale, None for the base, and its normalised target."""
        *earlier, target = (batch[f"y{k}"] for k in range(self.index + 1))
        before = prior(earlier, self.resolutions[self.index], self.resolutions[-1]) if earlier else None
        return before, self.target.apply(target)


def build_part(name: str, settings: FlowPart, folder: Path) -> ScalePart:
    """The part of one scale of the decomposition in `folder`."""
    statistics = read_json(folder / "statistics.json")
    scale = statistics["scales"][settings.index]
    config = ScaleConfig(
        index=settings.index,
        resolutions=[entry["resolution"] for entry in statistics["scales"]],
        target=Normalisation(shift=scale["mean"], scale=scale["std"]),
        latent=Normalisation(**statistics["latent"]),
        classes=statistics["classes"],
        network=settings.network,
    )
    table = Table.open(folder / "targets.safetensors", "label", *(f"y{k}" for k in range(settings.index + 1)))
    return ScalePart(name, table, config.build(), config, settings)
