"""The memory of a training against counts by hand, and against the plan, which computes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import TRAINING
from parts import SECTIONS, build
from torch import nn

from multiscale.core.device import CPU
from multiscale.core.models import ModelConfig
from multiscale.core.settings import Bad
from multiscale.core.storage import Table
from multiscale.plan import Understudy
from multiscale.training import memory
from multiscale.training.memory import Need
from multiscale.training.operations import flops_per_image, steps_of
from multiscale.training.part import Part, Training
from stages.common import fitting
from stages.common.errors import BadInput
from stages.common.harness import guarded
from stages.schema.data import Run

WIDE, BATCH = 8, 12


def layers(count):
    return nn.Sequential(*(nn.Linear(WIDE, WIDE, bias=False) for _ in range(count)))


class Pair(Part):
    """A network of two layers each step; every third step another of three, on what a frozen layer gives."""

    cycle = 3

    def __init__(self):
        data = Table({"x": torch.ones(5, WIDE).numpy()})
        super().__init__("pair", data, {"net": layers(2), "other": layers(3)}, ModelConfig)
        self.frozen = {"first": layers(1).requires_grad_(False)}

    def turns(self, step):
        return ("net", "other") if step % 3 == 2 else ("net",)

    def loss(self, network, nets, batch, draws):
        return nets[network](self.frozen["first"](batch["x"])).square().mean(), {}


def training(**settings):
    return Training(images=100, batch=BATCH, precision="fp32", **settings)


def need(workers=1, sharded=False, **settings):
    return memory.need(Pair(), training(**settings), CPU, workers, sharded)


def test_activations_are_the_inputs_of_the_layers_and_of_the_square_of_the_larger_network():
    assert need().activations == 4 * BATCH * WIDE * 4
    assert need(microbatch=3).activations == 4 * 3 * WIDE * 4
    assert need(workers=2).activations == 4 * BATCH // 2 * WIDE * 4
    assert need(microbatch=99).activations == need().activations, "a pass has no more images than the batch"
    assert need(recompute=True).activations == need(workers=2, sharded=True).activations == 0
    assert need(compile=True).activations == 0, "a compiled network keeps less"


class Kinds(Pair):
    """Two networks alike. The first sees three times as many images in every other step, the other is due late."""

    cycle = 2

    def __init__(self, most):
        super().__init__()
        self.networks["other"], self.times = layers(2), most

    def turns(self, step):
        return ("other",) if step == 9 else ("net",)

    def loss(self, network, nets, batch, draws):
        times = self.times[network][draws.step % 2]
        return nets[network](batch["x"].repeat(times, 1)).square().mean(), {}


@pytest.mark.parametrize("most", [{"net": (1, 3), "other": (1, 1)}, {"net": (1, 1), "other": (1, 3)}])
def test_activations_are_those_of_the_largest_step_of_a_cycle_and_of_a_turn_that_is_due_late(most):
    """Of two layers and a square their inputs, of three times as many images."""
    assert memory.activations(Kinds(most), "fp32", BATCH, CPU) == 3 * 3 * BATCH * WIDE * 4


def test_a_pass_has_no_more_images_than_a_training_and_the_images_may_be_fewer_than_are_tried():
    part, counts = Pair(), []
    part.data = Table({"x": torch.ones(1, WIDE).numpy()})
    part.networks["net"].register_forward_hook(lambda net, given, out: counts.append(len(out)))
    assert memory.activations(part, "fp32", 1, CPU) == 4 * WIDE * 4
    assert memory.activations(part, "fp32", 9, CPU) == 9 * 4 * WIDE * 4
    assert counts == [1] * 3 + [2] * 3 + [4] * 3


def test_states_are_weights_gradients_moments_and_the_average_of_the_main_network():
    weight = 4 * WIDE**2
    frozen, trained, main = 1, 5, 2
    assert need().states == weight * (frozen + trained * 3 + main)
    assert need(optimizer="muon").states == weight * (frozen + trained * 2 + main)
    assert need().gradients == weight * 3
    shards = need(workers=2, sharded=True)
    assert (shards.states, shards.gradients) == (need().states // 2, need().gradients // 2)
    half = memory.need(Pair(), training().model_copy(update={"precision": "bf16"}), CPU)
    assert half.states == need().states - weight // 2, "what is frozen is cast"


def test_a_network_beneath_an_adapter_is_there_once_without_moments_and_average(decomposed):
    part = build("adapter", decomposed)
    net = part.networks["generator"]
    adapter = sum(p.numel() for name, p in net.named_parameters() if "lora_" in name)
    beneath = sum(x.numel() for name, x in (*net.named_parameters(), *net.named_buffers()) if "lora_" not in name)
    found = memory.need(part, training(), CPU)
    assert 0 < adapter < beneath and found.gradients == 4 * adapter
    assert found.states == 4 * (beneath + 4 * adapter)


@pytest.mark.parametrize("kind", ["ssd", "teacher", "details"])
def test_a_part_keeps_no_more_than_the_plan_has_alive(decomposed, kind):
    """The plan adds gradients and what lives for a moment, and takes each call of a network to keep its most."""
    part = build(kind, decomposed)
    found = memory.activations(part, "fp32", BATCH, CPU)
    stands = [Understudy(net).instead() for net in (*part.networks.values(), *part.frozen.values())]
    batch, most = part.data[torch.arange(BATCH)], 0
    for draws, _ in steps_of(part, getattr(part, "cycle", 1), BATCH, CPU):
        for name in part.turns(draws.step):
            for stand in stands:
                stand.calls.clear()
            part.loss(name, part.networks, batch, draws)
            most = max(most, sum(call.activations for stand in stands for call in stand.calls))
    assert 0.25 * most < found < most


def test_the_part_is_left_as_it_was():
    part, state = Pair(), torch.random.get_rng_state()
    part.networks["net"][0].requires_grad_(False)
    before = [(p.clone(), p.requires_grad) for net in part.networks.values() for p in net.parameters()]
    memory.need(part, training(), CPU)
    after = [p for net in part.networks.values() for p in net.parameters()]
    assert all(
        torch.equal(p, x) and p.requires_grad == wants and p.grad is None for p, (x, wants) in zip(after, before)
    )
    assert torch.equal(torch.random.get_rng_state(), state)


class Dropping(Pair):
    """Drops numbers from torch's own stream; batch normalisation keeps running averages."""

    def __init__(self):
        super().__init__()
        self.networks["net"].append(nn.BatchNorm1d(WIDE)).append(nn.Dropout(0.5))


@pytest.mark.parametrize("kind", ["torch", "details"])
def test_no_pass_before_a_training_moves_a_random_stream_or_a_running_average(kind, decomposed, monkeypatch):
    """The discriminator of the details draws its dropout from a stream of the step, and a network may use torch's."""
    discriminator = {"width": 4, "blocks": 2, "norm": "batch", "dropout": 0.5}
    monkeypatch.setitem(SECTIONS["details"], "discriminator", discriminator)
    part = Dropping() if kind == "torch" else build("details", decomposed)
    state = torch.random.get_rng_state()
    before = {name: copy.deepcopy(net.state_dict()) for name, net in part.networks.items()}
    for passes in (lambda: memory.need(part, training(), CPU), lambda: flops_per_image(part, "fp32", CPU)):
        passes()
        assert torch.equal(torch.random.get_rng_state(), state)
        for name, net in part.networks.items():
            assert all(torch.equal(x, before[name][key]) for key, x in net.state_dict().items())


def test_what_does_not_fit_is_refused_with_the_estimate():
    found = Need(states=3 * 10**9, gradients=10**9, activations=5 * 10**9)
    memory.check(found, Pair(), training(), 8 * 10**9)
    with pytest.raises(Bad) as refused:
        memory.check(found, Pair(), training(), 8 * 10**9 - 1)
    assert (refused.value.key, refused.value.value) == ("training.batch", BATCH)
    said = "pair needs at least 8 GB (weights, moments and average 3 GB, activations 5 GB) and 8 GB are free"
    assert said in refused.value.allowed
    with pytest.raises(Bad) as refused:
        memory.check(Need(3 * 10**9, 10**9, 0), Pair(), training(), 1)
    assert "needs at least 4 GB (weights, moments and average 3 GB, gradients 1 GB)" in refused.value.allowed


def test_memory_that_holds_the_weights_already_counts_as_free(monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("Free", (), {"available": 1000}))
    assert memory.free(CPU, list(Pair().networks.values())) == 1000 + 5 * 4 * WIDE**2


def test_what_torch_holds_of_an_earlier_training_counts_as_free_on_a_gpu(monkeypatch):
    for name, found in (("mem_get_info", (1000, 9000)), ("memory_reserved", 700), ("memory_allocated", 200)):
        monkeypatch.setattr(torch.cuda, name, lambda device, found=found: found)
    assert memory.free(torch.device("cuda"), list(Pair().networks.values())) == 1000 + 700 - 200


def test_the_copy_for_the_result_is_made_before_the_part_is_on_the_device(decomposed, monkeypatch):
    part = build("dit", decomposed)
    net, asked = part.networks["net"], TRAINING.model_copy(update={"images": 1, "batch": 1})
    monkeypatch.setattr(memory, "activations", lambda part, *given: setattr(net, "moved", True) or 0)
    job = fitting.Job("dit", lambda: part, asked, 0, "key", decomposed / "out")
    fitting.work(job, Run(previews=0), lambda seen: None)
    assert net.moved and not hasattr(part.networks["net"], "moved")


def test_a_stage_that_does_not_fit_ends_before_its_first_step_and_writes_nothing(decomposed, monkeypatch):
    """The bytes that are free are one fewer than the training needs."""
    part, asked = build("dit", decomposed), TRAINING.model_copy(update={"batch": BATCH})
    total = memory.need(part, asked, CPU).total
    monkeypatch.setattr(memory, "free", lambda *given: total - 1)
    job = fitting.Job("dit", lambda: part, asked, 0, "key", decomposed / "out", decomposed / "full")
    before = sorted(decomposed.rglob("*"))
    with pytest.raises(BadInput, match=f"params.yaml: training.batch: {BATCH} is not allowed; allowed: what fits"):
        fitting.work(job, Run(previews=0), lambda seen: pytest.fail("a step was taken"))
    assert sorted(decomposed.rglob("*")) == before


def test_a_gpu_that_has_no_more_is_told_in_one_line(capsys):
    def step():
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB.")

    with pytest.raises(SystemExit, match="2"):
        guarded(step)
    said = capsys.readouterr().err
    assert said.startswith(
        "error: CUDA out of memory. Tried to allocate 2 GiB.; allowed: smaller batches (training.batch"
    )
    assert said.count("\n") == 1
