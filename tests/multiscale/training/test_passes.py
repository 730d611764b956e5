"""Micro-batches, recomputed activations, compiled networks: the same training, in less memory or time."""

from __future__ import annotations

from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from conftest import CONFIG, TRAINING, replace
from test_training import BUILD, SHORT
from torch import nn
from torch._dynamo.utils import counters

from multiscale.core.settings import Bad
from multiscale.core.storage import Table
from multiscale.core.streams import Draws
from multiscale.methods.ssd.parts import ScaleSpacePart
from multiscale.methods.ssd.settings import SSDPart
from multiscale.training.checkpoint import Checkpoints
from multiscale.training.loop import Trainer, fit
from multiscale.training.part import Part


def ssd_part() -> Part:
    """A denoiser of SSD with two levels and attention."""
    network = {"width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [8], "heads": 2, "groups": 4}
    section = {"method": "s", "kind": "ssd", "dataset": "p", "network": network, "training": {"images": 1}}
    settings = SSDPart.model_validate(section | {"process": {"steps": 100, "levels": 2}, "oversample": 20})
    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 16, 16)).astype(np.uint8)
    return ScaleSpacePart(
        "ssd", Table({"pixels": pixels, "label": np.arange(40) % 3}), settings, settings.config(1, 16, 3)
    )


PARTS = {**BUILD, "ssd": ssd_part}


def trained(kind: str, folder, randomness: str = "cpu", **changes):
    """The part, its history and its weights after a short training in single precision."""
    torch.manual_seed(0)
    part = PARTS[kind]()
    training = replace(SHORT, **{"images": 48, "precision": "fp32", **changes})
    found = fit(part, training, 0, Checkpoints(folder, kind, "key"), checkpoint_seconds=1e6, randomness=randomness)
    return part, found.history, found.weights


@pytest.mark.parametrize("randomness", ["cpu", "device"])
@pytest.mark.parametrize("kind", ["msf", "vae", "duel", "ssd", "copies by the fake's features"])
def test_the_loss_curve_does_not_depend_on_the_passes_of_a_step(kind, randomness, tmp_path):
    _, expected, weights = trained(kind, tmp_path / "1", randomness, images=24, log_images=8)
    for microbatch in (4, 2, 3):  # two and four passes, and three of which the last is smaller
        where = tmp_path / str(microbatch)
        _, history, found = trained(kind, where, randomness, images=24, log_images=8, microbatch=microbatch)
        assert sum("lr" in row for row in history) == 3 and len(history) == len(expected)
        for ours, theirs in zip(history, expected):
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)
        torch.testing.assert_close(found, weights, rtol=1e-3, atol=1e-4)


class Seen(Part):
    """Notes the rows of each pass, and their random numbers."""

    def __init__(self):
        super().__init__("seen", Table({"x": np.arange(40.0, dtype=np.float32)}), {"net": nn.Linear(1, 1)}, CONFIG)
        self.passes = []

    def loss(self, network, nets, batch, draws: Draws):
        self.passes.append((batch["x"], draws.normal("noise", 3)))
        return nets["net"](batch["x"][:, None]).square().mean(), {}


@pytest.mark.parametrize("randomness", ["cpu", "device"])
def test_a_pass_has_so_many_rows_and_their_draws_are_those_of_the_whole_batch(randomness):
    def passes(microbatch: int | None):
        run = Trainer(Seen(), replace(TRAINING, microbatch=microbatch), 0, randomness=randomness)
        run.step(run.fetch(0))
        return run.part.passes

    ((rows, noise),) = passes(None)
    found = passes(3)
    assert [len(x) for x, _ in found] == [3, 3, 2]
    assert torch.equal(torch.cat([x for x, _ in found]), rows)
    assert torch.equal(torch.cat([n for _, n in found]), noise)


def test_a_loss_or_network_that_looks_at_the_whole_batch_takes_no_micro_batches():
    norms = Seen()
    norms.networks["net"] = nn.Sequential(nn.Linear(1, 2), nn.BatchNorm1d(2))
    sets = BUILD["copies by the fake's features"]()
    sets.couples = "all images are one set"
    for part, why in ((norms, "normalisation"), (sets, "one set")):
        with pytest.raises(Bad, match=why):
            Trainer(part, replace(TRAINING, microbatch=4), 0)
        Trainer(part, TRAINING, 0)


@pytest.mark.parametrize("kind", ["msf", "ssd", "vae", "copies by the teacher's features"])
def test_recomputed_activations_train_to_the_same_bits(kind, tmp_path):
    _, expected, weights = trained(kind, tmp_path / "kept")
    _, history, found = trained(kind, tmp_path / "recomputed", recompute=True)
    assert history == expected
    torch.testing.assert_close(found, weights, rtol=0, atol=0)


@pytest.mark.parametrize("kind, layer", [("msf", "DiTBlock"), ("ssd", "ResidualBlock"), ("ssd", "SelfAttention")])
def test_the_backward_pass_computes_the_layers_again(kind, layer):
    calls = Counter()
    for recompute in (False, True):
        torch.manual_seed(0)
        run = Trainer(PARTS[kind](), replace(TRAINING, recompute=recompute), 0)
        for module in run.networks["net"].modules():
            if type(module).__name__ == layer:
                module.register_forward_pre_hook(lambda *_, which=recompute: calls.update([which]))
        run.step(run.fetch(0))
    assert calls[True] == 2 * calls[False] > 0


def test_networks_without_blocks_are_not_recomputed():
    with pytest.raises(Bad, match="seen"):
        Trainer(Seen(), replace(TRAINING, recompute=True), 0)


@pytest.fixture
def traced(monkeypatch):
    """Networks are compiled by torch's tracer alone, which fails where it would fall back."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield counters


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 1)

    def forward(self, x):
        return self.layer(self.layer(x))


class Sizes(Part):
    """A convolution at another resolution in each step."""

    def __init__(self):
        super().__init__("sizes", Table({"x": np.ones((8, 1, 16, 16), np.float32)}), {"net": Twice()}, CONFIG)

    def loss(self, network, nets, batch, draws: Draws):
        return nets["net"](batch["x"][..., : draws.step + 2]).square().mean(), {}


def test_a_network_is_compiled_for_each_resolution_without_end(traced):
    run = Trainer(Sizes(), replace(TRAINING, compile=True), 0)
    for _ in range(12):
        run.step(run.fetch(0))
    assert traced["stats"]["unique_graphs"] == 12, "each has a graph of its own, with static shapes"


@pytest.mark.parametrize("kind", ["msf", "copies by the teacher's features"])
def test_compiled_networks_and_teachers_train_as_they_are(kind, traced, tmp_path):
    _, expected, weights = trained(kind, tmp_path / "eager", images=16, log_images=8)
    assert not traced["stats"]
    part, history, found = trained(kind, tmp_path / "compiled", images=16, log_images=8, compile=True)
    assert all(net._compiled_call_impl for net in (*part.networks.values(), *part.frozen.values()))
    assert traced["stats"]["unique_graphs"] >= 1
    for ours, theirs in zip(history, expected):
        assert ours == pytest.approx(theirs, rel=1e-5)
    torch.testing.assert_close(found, weights)


def test_a_compiled_transformer_holds_its_positions_and_makes_them_in_no_call(monkeypatch):
    """Traced, they would be computed on the CPU in each call, and copied to the device while it waits."""
    names: list[str] = []

    def backend(graph, given):
        names.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch._dynamo.reset()
    run = Trainer(PARTS["msf"](), replace(TRAINING, compile=True), 0)
    run.step(run.fetch(0))
    assert any("linear" in name for name in names) and not any("arange" in name for name in names)


def test_blocks_of_a_compiled_network_are_recomputed_as_well(traced, tmp_path):
    _, expected, weights = trained("msf", tmp_path / "eager", images=16, log_images=8)
    _, history, found = trained("msf", tmp_path / "compiled", images=16, log_images=8, compile=True, recompute=True)
    assert traced["stats"]["unique_graphs"] == 1, "nothing falls out of the graph"
    for ours, theirs in zip(history, expected):
        assert ours == pytest.approx(theirs, rel=1e-5)
    torch.testing.assert_close(found, weights)


def test_batches_come_in_the_layout_of_the_network_and_pinned_for_a_gpu(monkeypatch):
    run, pinned = Trainer(BUILD["vae"](), TRAINING, 0), []
    assert run.fetch(0)["pixels"].is_contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(x.stride()) or x)
    run.fetch(0)
    assert not pinned
    run.device = torch.device("cuda")
    batch = run.fetch(0)
    assert pinned == [x.stride() for x in batch.values()], "as they are laid out"


def test_what_a_part_refuses_is_one_line_and_random_numbers_of_a_kind_have_own_checkpoints(tmp_path, monkeypatch):
    from stages.common import fitting
    from stages.common.errors import BadInput
    from stages.schema.data import Run

    keys = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(fitting, "Checkpoints", lambda *about: keys.append(about) or Checkpoints(*about))
    part = Seen()
    part.couples = "one looks at the other"
    job = fitting.Job("seen", lambda: part, replace(TRAINING, microbatch=4), 0, "key", tmp_path / "out")
    for randomness in ("cpu", "device"):
        with pytest.raises(BadInput, match=r"params.yaml: training.microbatch: 4 .* null for seen: one looks"):
            fitting.work(job, Run(randomness=randomness), on_step=lambda seen: None)
    assert len(set(keys)) == 2
