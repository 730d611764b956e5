"""Every random number is used once: no two draws of a step, nor two noises of an image, are of one stream."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import parts
import pytest
import torch
from parts import build

from multiscale import methods
from multiscale.core import streams
from multiscale.core.streams import Draws
from multiscale.networks.autoencoder import Codec

ADVERSARY = {"width": 4, "blocks": 2, "norm": "group", "dropout": 0.5}
ALL_LOSSES = {"dmd": {"weight": 1.0}, "gan": {"weight": 0.1}, "fake": {"updates": 1}}
DRAWING = [  # parts with settings by which they draw all that they can
    ("dit", {"timesteps": "uniform"}),
    ("dit", {"timesteps": "logit-normal"}),
    ("msf-1", {"prior_noise": 0.1}),
    ("ssd", {"flip": True}),
    ("low", {}),
    ("details", {"discriminator": ADVERSARY, "condition_noise": 0.1}),
    ("fine", {"condition_noise": 0.1}),
    ("teacher", {}),
    ("pyramidal", {"timesteps": "uniform"}),
    ("pyramidal", {"timesteps": "logit-normal"}),
    ("student", ALL_LOSSES),
]


@pytest.mark.parametrize("name, changes", DRAWING, ids=["-".join([name, *changes]) for name, changes in DRAWING])
def test_no_two_draws_of_a_training_step_are_of_one_stream(name, changes, decomposed, monkeypatch):
    """A time that came from the stream of the noise would tell the network what the noise is."""
    monkeypatch.setitem(parts.SECTIONS, name, parts.SECTIONS[name] | changes)
    part, asked = build(name, decomposed), []

    @dataclass(frozen=True)
    class Known(Draws):
        def _generator(self, stream):
            asked.append(stream)
            return super()._generator(stream)

    for step in range(4):
        for network in part.turns(step):
            asked.clear()
            draws = Known(0, part.name, step, 4, slice(0, 4), torch.device("cpu"))
            part.loss(network, part.networks, part.data[torch.arange(4)], draws)
            assert len(asked) > 1 and max(Counter(asked).values()) == 1, asked


STEPS = {"steps": 4}
SAMPLED = [  # the parts of each method, and its sampler
    (["msf-0", "msf-1"], {"kind": "msf", "scales": [STEPS, STEPS]}),
    (["ssd"], {"kind": "ssd", "solver": {"steps": 6}}),
    (["low", "details"], {"kind": "wmgm", "solver": {"name": "euler-maruyama", **STEPS}}),
    (["low", "diffused"], {"kind": "wmgm", "solver": {"name": "euler-maruyama", **STEPS}}),
    (["student"], {"kind": "swd"}),
    (["pyramidal"], {"kind": "pyramidal", "scales": [STEPS, STEPS, STEPS]}),
    (["shift"], {"kind": "shift", "solver": STEPS}),
]
MORE = {
    "diffused": parts.SECTIONS["fine"] | {"level": None},
    "pyramidal": parts.SECTIONS["pyramidal"] | {"jumps": [0.75, 0.375], "coarse": "latents"},
    "shift": {
        "kind": "shift",
        "dataset": "pyramid",
        "teacher": "teacher",
        "schedule": {"resolutions": [4, 8], "levels": [1.0, 0.6]},
    },
}


@pytest.mark.parametrize("names, method", SAMPLED, ids=["-".join(names) for names, _ in SAMPLED])
def test_no_two_noises_of_an_image_are_of_one_stream(names, method, decomposed, monkeypatch):
    """Resolutions, levels, states and steps have noise of their own."""
    monkeypatch.setattr(parts, "SECTIONS", parts.SECTIONS | MORE)
    folders = [decomposed / f"model-{name}" for name in names]
    for name, folder in zip(names, folders):
        folder.mkdir()
        build(name, decomposed).save(folder)
    kind = methods.settings(method["kind"])
    sampler = methods.sampler(method["kind"]).load_sampler(
        folders, kind.METHOD.model_validate(method), Codec(None, 1), "fp32"
    )
    asked, generator = [], streams.generator
    monkeypatch.setattr(streams, "generator", lambda *address: asked.append(address) or generator(*address))
    sampler([1, 2], torch.tensor([0, 1]))
    assert len(asked) >= 4 and max(Counter(asked).values()) == 1, asked
