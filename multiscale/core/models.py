"""The folder of a trained model: weights, and the config that rebuilds its network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from multiscale.core.finite import unfit
from multiscale.core.settings import Section, fault_of
from multiscale.core.storage import sha256_of

FORMAT = 1
CONFIG, WEIGHTS = "config.json", "model.safetensors"
IMAGES = "images.json"  # beside an autoencoder: the channels of the images it decodes to
AUTOENCODER = "autoencoder"  # subfolder of data and models on latents
TEXT, EMBEDDINGS = "text", "embeddings.safetensors"  # subfolder of data and models that read text, and a file in it
TEXT_ROWS = "rows.safetensors"  # another, of data: rows of that, `pictures` in their order and `prompts`
READER = "encoder.json"  # another: the name of the text encoder, its longest text and precision


class ForeignModel(ValueError):
    """A folder without a model of the expected format and kind; names the file and what is allowed."""


class ModelConfig(Section):
    """What a network and its sampler are rebuilt from; the base of every method's configs."""

    format: int = FORMAT
    """version of the folder's layout"""
    kind: str
    """method that the model belongs to"""
    role: str
    """which of the method's models this is"""


Config = TypeVar("Config", bound=ModelConfig)
Net = TypeVar("Net", bound=nn.Module)


def save(folder: Path, weights: dict[str, Tensor], config: ModelConfig) -> None:
    """Writes a model into an existing folder."""
    save_file(weights, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config.model_dump(), indent=2) + "\n")


def about(folder: Path) -> dict[str, Any]:
    """The config of a model as a dict. Raises ForeignModel where there is none, or one of another format version."""
    path = folder / CONFIG
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ForeignModel(f"{path}: {first_line(error)}; allowed: the folder of a trained model") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        version = found.get("format") if isinstance(found, dict) else None
        raise ForeignModel(f"{path}: format: {version!r} is not allowed; allowed: {FORMAT} (train the model again)")
    return found


def config(folder: Path, kind: type[Config]) -> Config:
    """The validated config of a model. Raises ForeignModel for a model of another kind."""
    try:
        return kind.model_validate(about(folder))
    except ValidationError as error:
        raise ForeignModel(f"{folder / CONFIG}: {fault_of(error)}"[:400]) from None


def load_weights(net: Net, folder: Path, assign: bool = False) -> Net:
    """Loads a model's weights into its network; with `assign` they stay as they are, in the place of its own.

    Raises ForeignModel if they do not fit.
    """
    path = folder / WEIGHTS
    try:
        net.load_state_dict(load_file(path), assign=assign)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise ForeignModel(f"{path}: {first_line(error)}; allowed: the weights of the config beside it") from None
    return checked(net, path)


def checked(net: Net, path: Path) -> Net:
    """The network of a file or folder. Raises ForeignModel if some of its weights are not finite."""
    if name := unfit(net.state_dict()):
        raise ForeignModel(f"{path}: {name} holds numbers that are not finite; allowed: finite weights (train again)")
    return net


def digest(folder: Path) -> str:
    """The SHA-256 of a model's weights. Raises ForeignModel where there are none."""
    try:
        return sha256_of(folder / WEIGHTS)
    except OSError as error:
        raise ForeignModel(f"{folder / WEIGHTS}: {first_line(error)}; allowed: the weights of a model") from None


def first_line(error: Exception) -> str:
    """The reason of an error in one line."""
    return (getattr(error, "strerror", None) or str(error).strip() or type(error).__name__).splitlines()[0]
