"""What the published networks have in common: how they are called, built, loaded and checkpointed.

The networks are diffusers' own modules with its names for weights and settings, so that its checkpoints and LoRAs fit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from multiscale.core.compat import without_pipelines
from multiscale.core.models import ForeignModel, first_line
from multiscale.core.normalisation import Normalisation
from multiscale.core.settings import Section, fault_of
from multiscale.networks.recompute import recomputed


class Published(nn.Module):
    """A network of diffusers, called as (x (N, C, h, h), t (N,), prompt (N, L, D), pooled (N, P)).

    It gives the velocity eps - x0 at x = (1 - t) x0 + t eps, shaped like x. With `block`, also the image's tokens
    (N, T, W) after that block, counted from zero; with `stop`, these tokens alone: the later blocks do not run. All of
    this is `forward`, because FSDP gathers weights and torch.compile looks only there.
    """

    folder: ClassVar[str]
    """of the network in a pipeline's folder, and the prefix of its LoRA's keys"""
    adapted: ClassVar[str]
    """pattern of the layers that SwD adapts: attention and MLP, the attention's projections of the text excepted"""

    def __init__(self, net: Any):
        super().__init__()
        self.net = net

    def forward(
        self, x: Tensor, t: Tensor, prompt: Tensor, pooled: Tensor, block: int | None = None, stop: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        raise NotImplementedError

    def recompute(self) -> None:
        """Keeps only the inputs of the blocks for the backward pass, which computes the rest again."""
        self.net.enable_gradient_checkpointing(recomputed)

    def through(self, layer: nn.Module, *given: Any) -> Any:
        """Calls a block of the network as the library does, which may compute it again in the backward pass."""
        if torch.is_grad_enabled() and self.net.gradient_checkpointing:
            return self.net._gradient_checkpointing_func(layer, *given)
        return layer(*given)


Own = TypeVar("Own", bound="PublishedNetwork")


class PublishedNetwork(Section):
    """The size of a published network, in the numbers and names of diffusers' config.json."""

    library: ClassVar[str]
    """diffusers' class"""
    network: ClassVar[type[Published]]
    beside: ClassVar[frozenset[str]] = frozenset()
    """the fields that are no numbers of the config, but arguments of the network"""

    @property
    def depth(self) -> int:
        """Blocks, as `block` counts them."""
        return len(self.widths)

    @property
    def widths(self) -> list[int]:
        """Channels of the image's tokens after each block."""
        raise NotImplementedError

    @property
    def patch(self) -> int:
        """What divides the edge of the latents."""
        raise NotImplementedError

    @property
    def channels(self) -> int:
        """Of the latents."""
        raise NotImplementedError

    @property
    def text(self) -> tuple[int, int]:
        """Channels of a token of the prompt, and of the pooled prompt."""
        raise NotImplementedError

    def tokens(self, length: int) -> int:
        """Of a prompt, as the pipeline pads it; `length` are those of T5."""
        raise NotImplementedError

    def numbers(self) -> dict[str, Any]:
        """What the config of diffusers holds."""
        return self.model_dump(exclude=set(self.beside))

    def build(self) -> Published:
        """The network with random weights, on torch's default device."""
        return self._around(library(self.library)(**self.numbers()))

    def load(self, folder: Path, dtype: torch.dtype = torch.float32) -> Published:
        """The network with the weights in the folder of a diffusers pipeline. Asks no hub.

        Raises ForeignModel where there are none, some are missing, or they belong to another network.
        """
        found = self.of(folder)
        for key, value in self.numbers().items():
            if (there := getattr(found, key)) != value:
                raise ForeignModel(f"{folder / config_of(self)}: {key}: {there!r} is not allowed; allowed: {value!r}")
        place = folder / self.network.folder
        if not any(place.glob("*.safetensors")):  # diffusers would log its own lines
            raise ForeignModel(f"{place}: holds no safetensors; allowed: {WANTED}")
        try:
            net, told = library(self.library).from_pretrained(
                place, torch_dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ForeignModel(f"{place}: {first_line(error)}; allowed: {WANTED}") from None
        if missing := [*told["missing_keys"], *(each[0] for each in told["mismatched_keys"])]:
            raise ForeignModel(f"{place}: {missing[0]} is missing or of another shape; allowed: {WANTED}")
        return self._around(net)

    @classmethod
    def of(cls: type[Own], folder: Path) -> Own:
        """The size of the network in the folder of a diffusers pipeline. Raises ForeignModel where there is none."""
        path = folder / config_of(cls)
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ForeignModel(f"{path}: {first_line(error)}; allowed: {WANTED}") from None
        if found.get("_class_name") != cls.library:
            name = found.get("_class_name")
            raise ForeignModel(f"{path}: _class_name: {name!r} is not allowed; allowed: {cls.library}")
        fields = cls.model_fields.keys() - cls.beside
        try:
            return cls.model_validate({key: found[key] for key in fields & found.keys()})
        except ValidationError as error:
            raise ForeignModel(f"{path}: {fault_of(error)}") from None

    def _around(self, net: Any) -> Published:
        return self.network(net, **self.model_dump(include=set(self.beside)))


CLIP = 77  # tokens that CLIP's text encoder takes
WANTED = (
    "the folder of a diffusers pipeline, with config.json and safetensors in its transformer/ or unet/, "
    "as `hf download NAME --local-dir FOLDER` puts them there"
)


def config_of(kind: PublishedNetwork | type[PublishedNetwork]) -> str:
    """The place of a network's config in a pipeline's folder."""
    return f"{kind.network.folder}/config.json"


def normalisation(config: Mapping[str, Any]) -> Normalisation:
    """The normalisation of latents that a published autoencoder's config asks for: (z - shift) * scaling."""
    count, shift = config["latent_channels"], config.get("shift_factor") or 0.0  # SDXL's has no shift
    return Normalisation(shift=[shift] * count, scale=[1 / config["scaling_factor"]] * count)


def library(name: str) -> Any:
    """A class of diffusers' models, imported only when needed because that takes seconds."""
    with without_pipelines():
        from diffusers import models

        return getattr(models, name)
