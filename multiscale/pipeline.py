"""An exported method in diffusers: its networks are components of a pipeline that makes the images of its sampler."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from multiscale import methods
from multiscale.core.compat import make_torchvision_importable
from multiscale.core.device import resolve_precision
from multiscale.core.settings import Sampled, fault_of
from multiscale.model import Model
from multiscale.networks.autoencoder import Codec
from multiscale.networks.group_norm import use_in

make_torchvision_importable()  # which diffusers' pipelines import

from diffusers import ConfigMixin, DiffusionPipeline, ImagePipelineOutput, ModelMixin  # noqa: E402
from diffusers.configuration_utils import register_to_config  # noqa: E402


def component(kind: str) -> ModuleType:
    """What makes the networks of a method components, and a sampler of them. Raises ValueError for other methods."""
    found = methods.component(kind)
    if found is None:
        raise ValueError(f"kind: {kind!r} is not allowed; allowed: a method with a module `component`")
    return found


class Network(ModelMixin, ConfigMixin):  # type: ignore[misc]  # diffusers has no types
    """One network of a method; `about` is the config that it was trained with."""

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(self, about: dict[str, Any]):
        super().__init__()
        self.about, self.net = component(about["kind"]).built(dict(about))

    @classmethod
    def from_pretrained(cls, path: Any, **given: Any) -> Network:
        """As in diffusers; the network is built as everywhere, since it computes some of its buffers itself."""
        found: Network = super().from_pretrained(path, **given | {"low_cpu_mem_usage": False})
        return found

    def forward(self, *inputs: Tensor) -> Tensor:
        made: Tensor = self.net(*inputs)
        return made


class MultiscalePipeline(DiffusionPipeline):  # type: ignore[misc]
    """From classes and seeds to images: those of `multiscale.load(FOLDER).sample`, for the same seeds.

    The sampler works on copies of the components, in bf16 where the device multiplies it natively, as everywhere in
    multiscale, whatever the type of the components. settings: the solvers, as in an experiment.
    """

    def __init__(self, networks: dict[str, Network], vae: Any, channels: int, settings: dict[str, Any]):
        super().__init__()
        self.register_modules(**networks, **({"vae": vae} if vae else {}))
        self.register_to_config(channels=channels, settings=settings)
        try:
            self.solvers: Sampled = methods.settings(settings["kind"]).METHOD.model_validate(settings)
        except ValidationError as error:
            raise ValueError(f"settings: {fault_of(error)}") from None
        self.names = list(networks)
        self.model: Model | None = None
        self.place: torch.device | None = None

    def ready(self) -> Model:
        """The sampler on the device of the components, made once for each."""
        if self.model is None or self.place != self.device:
            vae = getattr(self, "vae", None)
            codec = Codec(use_in(copy.deepcopy(vae).float().eval()) if vae else None, self.config.channels)
            networks: list[Network] = [getattr(self, name) for name in self.names]
            parts = [(network.about, copy.deepcopy(network.net).float()) for network in networks]
            precision = resolve_precision("auto", self.device)
            sampler = component(self.solvers.kind).sampler(parts, self.solvers, codec, precision)
            modules: list[nn.Module] = [codec, *sampler.networks.values()]
            for module in modules:
                module.to(self.device)
            sampler.device = self.place = self.device
            self.model = Model(sampler, max(getattr(about, "classes", 0) for about, _ in parts))
        return self.model

    def __call__(
        self,
        classes: int | Sequence[int] | None = None,
        seeds: Sequence[int] = (0,),
        batch: int = 50,
        output_type: str = "pil",
        return_dict: bool = True,
    ) -> Any:
        """Images, one for each seed: of one class, or of a class for each seed (see `multiscale.model.Model.sample`).

        output_type: 'pil'; 'np', (N, H, H, C) in [0, 1]; or 'pt', a tensor (N, C, H, H) in [0, 1].
        """
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"output_type: {output_type!r} is not allowed; allowed: pil, np, pt")
        images: Any = self.ready().sample(classes, seeds, batch)
        if output_type != "pt":
            images = images.permute(0, 2, 3, 1).numpy()
        if output_type == "pil":
            images = self.numpy_to_pil(images)
        return ImagePipelineOutput(images=images) if return_dict else (images,)
