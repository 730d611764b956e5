"""Students of published networks as LoRA files: diffusers' format, and that of the released checkpoints.

A student's file is what `load_lora_weights` of diffusers' pipelines takes. Its schedule, with which alone it is to be
sampled, is in the file's metadata and in the config beside it. The released checkpoints are adapters of peft without
a schedule.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from multiscale.core.compat import make_torchvision_importable
from multiscale.core.models import CONFIG, ForeignModel, first_line
from multiscale.core.storage import metadata_of, read_json
from multiscale.methods.swd.config import LoraConfig
from multiscale.networks.published.network import Published

if TYPE_CHECKING:
    from peft import PeftModel

WEIGHTS, RELEASED = "pytorch_lora_weights.safetensors", "adapter_model.safetensors"
WANTED = f"the folder of a LoRA, with {WEIGHTS} (ours, diffusers') or {RELEASED} (peft's, the released checkpoints')"
SCHEDULE = "schedule"  # key of the file's metadata
INSIDE = "base_model.model."  # what peft puts before the names of a network


def save_lora(folder: Path, net: PeftModel, config: LoraConfig) -> None:
    """Writes the adapter of a network and its config into an existing folder."""
    from peft import get_peft_model_state_dict

    inside, base = f"{INSIDE}net.", cast(Published, net.get_base_model())
    weights = get_peft_model_state_dict(net)
    named = {f"{base.folder}.{key.removeprefix(inside)}": value.contiguous() for key, value in weights.items()}
    metadata = {"format": "pt", SCHEDULE: config.schedule.model_dump_json()}
    save_file(named, folder / WEIGHTS, metadata)
    (folder / CONFIG).write_text(json.dumps(config.model_dump(), indent=2) + "\n")


def load_lora(folder: Path, net: Published, wanted: int | None = None) -> PeftModel:
    """The network, frozen, with the adapter in a folder, of the rank `wanted`; None: of any rank.

    Raises ForeignModel where there is none that fits.
    """
    path = _weights(folder)
    weights, alpha = _named(path, net), _alpha(path, net)
    make_torchvision_importable()
    from peft import LoraConfig as Low
    from peft import get_peft_model, set_peft_model_state_dict

    layers = sorted({key.partition(".lora_")[0] for key in weights})
    rank = next((len(value) for key, value in weights.items() if ".lora_A." in key), 0)
    if wanted not in (None, rank):
        raise ForeignModel(f"{path}: rank: {rank} is not allowed; allowed: {wanted}, as {folder / CONFIG} says")
    try:
        adapted = get_peft_model(net, Low(r=rank, lora_alpha=alpha or rank, target_modules=layers))
        told = set_peft_model_state_dict(adapted, {INSIDE + key: value for key, value in weights.items()})
    except (ValueError, RuntimeError) as error:
        raise ForeignModel(f"{path}: {first_line(error)}; allowed: an adapter of this network") from None
    missing = [key for key in told.missing_keys if ".lora_" in key]
    if wrong := [*told.unexpected_keys, *missing]:
        raise ForeignModel(f"{path}: {wrong[0]} does not fit; allowed: an adapter of this network")
    return adapted


def _weights(folder: Path) -> Path:
    for name in (WEIGHTS, RELEASED):
        if (folder / name).is_file():
            return folder / name
    raise ForeignModel(f"{folder}: holds no LoRA; allowed: {WANTED}")


def _named(path: Path, net: Published) -> dict[str, Tensor]:
    """The weights of a file by the names of our network."""
    try:
        weights = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ForeignModel(f"{path}: {first_line(error)}; allowed: safetensors") from None
    prefix = INSIDE if path.name == RELEASED else f"{net.folder}."
    wrong = [key for key in weights if not key.startswith(prefix) or ".lora_" not in key]
    if wrong or not weights:
        told = wrong[0] if wrong else "empty"
        raise ForeignModel(f"{path}: {told}; allowed: keys {prefix}LAYER.lora_A.weight and .lora_B.weight")
    return {f"net.{key.removeprefix(prefix)}": value for key, value in weights.items()}


def _metadata(path: Path) -> dict[str, str]:
    try:
        return metadata_of(path)
    except (OSError, SafetensorError) as error:
        raise ForeignModel(f"{path}: {first_line(error)}; allowed: safetensors") from None


def _alpha(path: Path, net: Published) -> float | None:
    """The alpha that peft's config or diffusers' metadata names; None where neither does, and alpha is the rank."""
    config = path.parent / "adapter_config.json"
    if path.name == RELEASED and config.is_file():
        found, key = read_json(config), "lora_alpha"
    else:
        found, key = json.loads(_metadata(path).get("lora_adapter_metadata", "{}")), f"{net.folder}.lora_alpha"
    return float(found[key]) if key in found else None
