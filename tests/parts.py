"""A small part of each kind, on the decompositions of 40 random images."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import TRAINING
from pydantic import TypeAdapter
from safetensors.torch import save_file

from multiscale import methods
from multiscale.core.storage import Table
from multiscale.methods.wmgm.bands import decompose_images, statistics

CLASSES, COUNT, LATENT = 3, 6, {"shift": [0.1], "scale": [0.4]}
DIT = {"depth": 1, "width": 32, "heads": 2, "patch": 2}
UNET = {"width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [8], "heads": 2, "groups": 4}
LABELS = torch.arange(40) % CLASSES
SECTIONS = {
    "dit": {"kind": "msf", "dataset": "full", "index": 0, "network": DIT},
    "msf-0": {"kind": "msf", "dataset": "residual", "index": 0, "network": DIT},
    "msf-1": {"kind": "msf", "dataset": "residual", "index": 1, "network": DIT},
    "ssd": {"kind": "ssd", "dataset": "pixels", "network": UNET, "process": {"steps": 40, "levels": 2}},
    "sgm": {"kind": "wmgm", "dataset": "pixels", "role": "coarse", "network": UNET},
    "low": {"kind": "wmgm", "dataset": "bands", "role": "coarse", "network": UNET},
    "details": {
        "kind": "wmgm",
        "dataset": "bands",
        "role": "details",
        "generator": {"widths": [8, 16], "norm": "group", "head": "linear"},
        "discriminator": {"width": 4, "blocks": 2, "norm": "group", "dropout": 0.0},
        "loss": {"preset": "stabilised"},
    },
    "fine": {  # of the finest level alone
        "kind": "wmgm",
        "dataset": "bands",
        "role": "score-details",
        "level": 1,
        "network": UNET | {"attention": []},
    },
    "teacher": {"kind": "swd", "dataset": "pyramid", "network": DIT},
    "pyramidal": {"kind": "pyramidal", "dataset": "pyramid", "network": DIT, "jumps": [0.5]},
    "student": {
        "kind": "swd",
        "dataset": "pyramid",
        "teacher": "teacher",
        "block": 0,
        "schedule": {"resolutions": [4, 8], "sigmas": [1.0, 0.7]},
    },
}
SECTIONS["adapter"] = SECTIONS["student"] | {"lora_rank": 2}


@pytest.fixture
def decomposed(tmp_path, monkeypatch):
    """Decompositions of 40 random images, in folders of the working directory."""
    monkeypatch.chdir(tmp_path)
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 1, 16, 16), generator=random, dtype=torch.uint8)
    z = {side: torch.randn(40, 1, side, side, generator=random) for side in (4, 8)}
    scales = {side: {"resolution": side, "mean": [0.1], "std": [0.8 + side / 20]} for side in (4, 8)}
    bands = decompose_images(images, "haar", 2)
    made = {
        "full": ({"y0": z[8]}, {"scales": [scales[8]], "latent": LATENT}),
        "residual": ({"y0": z[4], "y1": z[8]}, {"scales": [scales[4], scales[8]], "latent": LATENT}),
        "pyramid": ({"z4": z[4], "z8": z[8]}, {"grids": {"4": 4, "8": 8}, "latent": LATENT}),
        "pixels": ({"pixels": images}, {}),
        "bands": (bands, statistics(Table({name: band.numpy() for name, band in bands.items()}), "haar", 2)),
    }
    for name, (columns, about) in made.items():
        (tmp_path / name).mkdir()
        save_file(columns | {"label": LABELS}, tmp_path / name / "targets.safetensors")
        (tmp_path / name / "statistics.json").write_text(json.dumps({"classes": CLASSES, **about}))
    return tmp_path


def build(name: str, decomposed):
    """A part on its decomposition, with the zero layers of its networks randomised."""
    torch.manual_seed(0)
    section = SECTIONS[name] | {"method": "m", "training": TRAINING}
    settings, parts = methods.settings(section["kind"]), methods.parts(section["kind"])
    if "teacher" in section:
        (decomposed / "models").mkdir(exist_ok=True)
        build("teacher", decomposed).save(decomposed / "models")
        part = parts.build_student(
            name, settings.STUDENT.model_validate(section), decomposed / section["dataset"], decomposed / "models"
        )
    else:
        section = TypeAdapter(settings.PART).validate_python(section)
        part = parts.build_part(name, section, decomposed / section.dataset)
    for net in part.networks.values():
        for parameter in net.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
    return part
