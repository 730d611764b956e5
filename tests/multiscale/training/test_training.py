"""The training loop: the same weights after a kill and on several workers, several networks, budgets in images."""

from __future__ import annotations

import gc
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from conftest import CONFIG, ROOT, TRAINING, flipped, replace, until
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from multiscale.core import models
from multiscale.core.device import autocast
from multiscale.core.storage import Table
from multiscale.core.streams import Held
from multiscale.methods.msf import parts as msf_parts
from multiscale.methods.msf.settings import FlowPart
from multiscale.methods.swd import parts as swd_parts
from multiscale.methods.swd.config import TeacherConfig
from multiscale.training.checkpoint import Checkpoints
from multiscale.training.loop import EMA, Trainer, fit, learning_rate
from multiscale.training.parallel import Workers, first_worker, whole
from multiscale.training.part import Part, Training

SHORT = replace(
    TRAINING,
    lr=2e-3,
    warmup_images=16,
    decay="cosine",
    weight_decay=0.01,
    ema_images=32,
    precision="auto",
    log_images=24,
)


class Line(Part):
    """A weight matrix that learns y = 3 x; the rows of the data are numbered, so that a test sees which were used."""

    def __init__(self, rows: int = 20, scale: float = 1.0):
        x = np.random.default_rng(0).standard_normal((rows, 4)).astype(np.float32)
        super().__init__("line", Table({"x": x, "row": np.arange(rows)}), {"net": nn.Linear(4, 4)}, CONFIG)
        self.scale, self.rows = scale, []

    def loss(self, network, nets, batch, draws):
        self.rows.append(batch["row"].tolist())
        return self.scale * (nets["net"](batch["x"]) - 3 * batch["x"]).square().mean(), {}


class Duel(Part):
    """A generator that shifts noise onto the data and a critic that separates them, updated alternately."""

    main = "generator"

    def __init__(self):
        x = 3 + np.random.default_rng(0).standard_normal((64, 2)).astype(np.float32)
        critic = nn.Sequential(nn.Linear(2, 16), nn.SiLU(), nn.Linear(16, 1))
        super().__init__("duel", Table({"x": x}), {"generator": nn.Linear(2, 2), "critic": critic}, CONFIG)
        self.moved = []

    def turns(self, step):
        return ("critic",) if step % 2 == 0 else ("generator",)

    def loss(self, network, nets, batch, draws):
        self.moved.append(network)
        made = nets["critic"](nets["generator"](draws.normal("latent", 2)))
        if network == "generator":
            return F.softplus(-made).mean(), {}
        real = nets["critic"](batch["x"])
        return (F.softplus(made) + F.softplus(-real)).mean(), {"real": real.mean()}


class Slowed:
    """Slow data, so that a run can be killed halfway; counts the batches."""

    def __init__(self, data, seconds: float):
        self.data, self.seconds, self.fetched = data, seconds, 0

    def __len__(self):
        return len(self.data)

    def __getitem__(self, rows):
        time.sleep(self.seconds)
        self.fetched += 1
        return self.data[rows]


def scale_part() -> Part:
    """The second scale of MSF."""
    about = {"kind": "msf", "role": "scale", "index": 1, "resolutions": [4, 6], "classes": 3}
    about |= {"target": {"shift": [0.1, 0.2], "scale": [0.5, 0.5]}, "latent": {"shift": [0.0] * 2, "scale": [1.0] * 2}}
    about["network"] = {"depth": 2, "width": 32, "heads": 2, "patch": 2}
    part = {"method": "msf", "kind": "msf", "dataset": "residual", "index": 1, "network": about["network"]}
    part |= {"prior_noise": 0.1, "training": {"images": 1}}
    random = np.random.default_rng(0)
    arrays = {
        f"y{k}": random.standard_normal((40, 2, resolution, resolution)).astype(np.float32)
        for k, resolution in enumerate((4, 6))
    }
    data = Table(arrays | {"label": np.arange(40) % 3})
    config, settings = msf_parts.ScaleConfig.model_validate(about), FlowPart.model_validate(part)
    made = msf_parts.ScalePart("msf-1", data, config.build(), config, settings)
    made.held_out = data  # for rows with the validation loss; that it is trained on too has no effect
    return made


def vae_part() -> Part:
    """An autoencoder at two resolutions."""
    from multiscale.networks import autoencoder

    pixels = np.random.default_rng(0).integers(0, 256, (40, 1, 16, 16)).astype(np.uint8)
    net = autoencoder.build(1, 2, (8, 16), 1, 4)
    return autoencoder.AutoencoderPart("vae", Table({"pixels": pixels}), net, [8, 16], 1e-3)


def student_part(rank: int | None, features: str) -> Part:
    """A student of SwD with all three losses, whose teacher is a separate network or the base of the adapters."""
    from multiscale.methods.swd.settings import Student

    schedule = {"resolutions": [4, 8], "sigmas": [1.0, 0.7]}
    section = {"method": "s", "kind": "swd", "dataset": "p", "teacher": "t", "block": 0, "schedule": schedule}
    section |= {"dmd": {"weight": 1.0}, "gan": {"weight": 0.1}, "fake": {"updates": 1}, "mmd": {"features": features}}
    section |= {"lora_rank": rank, "training": {"images": 1}}
    latent, size = {"shift": [0.0] * 2, "scale": [1.0] * 2}, {"depth": 2, "width": 32, "heads": 2, "patch": 2}
    config = {"kind": "swd", "role": "teacher", "channels": 2, "resolution": 8, "classes": 3, "latent": latent}
    config = TeacherConfig.model_validate(config | {"network": size})
    net, random = config.network.build(2, 2, 3), torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=random)
    data = {f"z{resolution}": torch.randn(40, 2, resolution, resolution, generator=random) for resolution in (4, 8)}
    with tempfile.TemporaryDirectory() as folder:
        save_file(data | {"label": torch.arange(40) % 3}, Path(folder, "targets.safetensors"))
        about = {"classes": 3, "latent": latent, "grids": {"4": 4, "8": 8}}
        Path(folder, "statistics.json").write_text(json.dumps(about))
        models.save(Path(folder), net.state_dict(), config)
        made = swd_parts.build_student("student", Student.model_validate(section), Path(folder), Path(folder))
        made.held_out = made.data
        return made


STUDENTS = {
    f"{kind} by the {features}'s features": partial(student_part, rank, features)
    for kind, rank in (("copies", None), ("adapters", 2))
    for features in ("teacher", "fake")
}
BUILD = {"msf": scale_part, "vae": vae_part, "duel": Duel, **STUDENTS}
HOW = {"": {}, "-passes": {"microbatch": 3}, "-recomputed": {"recompute": True}, "-bf16": {"precision": "bf16"}}
SPREAD = [(kind, parallel, None, "") for kind in BUILD for parallel in ("ddp", "fsdp")]
SPREAD += [(kind, parallel, 40, "") for kind in ("msf", "duel") for parallel in ("ddp", "fsdp")]  # between rows
SPREAD += [("msf", parallel, None, how) for parallel in ("ddp", "fsdp") for how in HOW if how]


def run_stage(kind: str, root: Path, seconds: float = 0.0) -> int:
    """Trains a part in the folder `root` as a worker of its stage does; returns the number of batches."""
    from stages.common import fitting
    from stages.schema.data import Run

    made = []

    def build() -> Part:
        made.append(BUILD[kind]())
        made[0].data = Slowed(made[0].data, seconds)
        return made[0]

    os.chdir(root)
    job = fitting.Job(kind, build, SHORT, 0, "key", root / "out")
    fitting.work(job, Run(checkpoint_seconds=0.0), on_step=lambda seen: None)
    return made[0].data.fetched


@pytest.mark.parametrize("kind", ["msf", "vae"])
def test_killed_in_its_middle_and_started_again_a_run_ends_in_the_same_files(kind, tmp_path, monkeypatch):
    broken, whole = tmp_path / "broken", tmp_path / "whole"
    broken.mkdir(), whole.mkdir()

    command = [sys.executable, __file__, kind, str(broken), "0.3"]
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path}) as child:
        while not list(broken.glob(".scratch/checkpoints/*/[0-9]*.safetensors")):
            assert child.poll() is None, "it ended without a checkpoint"
            time.sleep(0.001)
        os.kill(child.pid, signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert not (broken / "out").exists()

    threads = torch.get_num_threads()
    monkeypatch.chdir(whole)
    assert run_stage(kind, broken) < run_stage(kind, whole), "the second start went on from the checkpoint"
    torch.set_num_threads(threads)
    ours, theirs = ({path.name: path.read_bytes() for path in (root / "out").iterdir()} for root in (broken, whole))
    assert any(name.endswith(".safetensors") for name in theirs)
    assert ours == theirs
    assert not list(broken.glob(".scratch/checkpoints/*")), "a finished run leaves no checkpoints"


class Interrupted(Exception):
    pass


def stop_at(images: int | None):
    def on_step(seen: int) -> None:
        if seen == images:
            raise Interrupted

    return on_step


def start_of(part: Callable[[], Part], training: Training, folder: Path, **options):
    torch.manual_seed(0)
    made = part()
    return made, lambda **more: fit(
        made, training, 0, Checkpoints(folder, made.name, "key"), **{"checkpoint_seconds": 0.0, **options, **more}
    )


@pytest.mark.parametrize("stop", [24, 32, 88])  # on a history row, between two rows, before the end
@pytest.mark.parametrize("part", [Line, Duel])
def test_a_run_interrupted_anywhere_goes_on_to_the_same_weights_and_history(part, stop, tmp_path):
    goes_on(part, SHORT, stop, tmp_path)


@pytest.mark.parametrize(
    "randomness, changes", [("device", {}), ("cpu", {"microbatch": 3}), ("cpu", {"recompute": True})]
)
def test_so_does_one_with_draws_of_the_device_in_passes_or_recomputed(randomness, changes, tmp_path):
    goes_on(scale_part, replace(SHORT, images=48, **changes), 32, tmp_path, randomness=randomness)


def goes_on(part: Callable[[], Part], training: Training, stop: int, folder: Path, **options) -> None:
    """Asserts that a run interrupted at `stop` images ends as one that was not."""
    whole, fit_whole = start_of(part, training, folder / "whole", **options)
    expected = fit_whole()
    _, fit_broken = start_of(part, training, folder / "broken", **options)
    with pytest.raises(Interrupted):
        fit_broken(on_step=stop_at(stop))
    resumed, fit_resumed = start_of(part, training, folder / "broken", **options)
    seen = []
    found = fit_resumed(on_step=seen.append)
    assert seen[0] == stop - training.batch, "it went on from the last checkpoint"
    torch.testing.assert_close(found.weights, expected.weights, rtol=0, atol=0)
    assert found.history == expected.history
    for name, net in whole.networks.items():
        torch.testing.assert_close(resumed.networks[name].state_dict(), net.state_dict(), rtol=0, atol=0)


def test_the_next_batch_is_fetched_while_a_step_runs(tmp_path):
    class Waiting(Line):
        """Ends no step before the batch of the next is there."""

        def loss(self, network, nets, batch, draws):
            until(lambda: self.data.fetched == draws.step + 2, seconds=30)
            return super().loss(network, nets, batch, draws)

    part, fit_part = start_of(Waiting, replace(SHORT, images=24), tmp_path)
    part.data = Slowed(part.data, 0.0)
    assert fit_part().history[-1]["images"] == 24


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_weights_of_a_frozen_teacher_are_cast_once_and_those_in_training_never(precision):
    part = BUILD["copies by the teacher's features"]()
    Trainer(part, replace(SHORT, precision=precision), 0)

    def kinds(nets: dict[str, nn.Module]) -> set[torch.dtype]:
        layers = [module for net in nets.values() for module in net.modules() if isinstance(module, nn.Linear)]
        return {layer.weight.dtype for layer in layers}

    assert kinds(part.frozen) == {torch.bfloat16 if precision == "bf16" else torch.float32}
    assert kinds(part.networks) == {torch.float32}


def test_two_networks_take_turns_log_their_losses_and_learn(tmp_path):
    training = replace(SHORT, images=4800, log_images=480, lr=0.02, decay="constant")
    duel, fit_duel = start_of(Duel, training, tmp_path)
    history = fit_duel(checkpoint_seconds=1000.0).history
    assert duel.moved == ["critic", "generator"] * 300
    for row in history:
        assert {"loss", "grad_norm", "critic_loss", "critic_grad_norm", "critic_real"} < set(row)
        assert all(math.isfinite(value) for value in row.values())
    assert row["critic_loss"] > history[0]["critic_loss"], "the critic is fooled more and more"
    made = duel.networks["generator"](torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)))
    assert (made.mean(0) - 3).abs().max() < 1, "the generator has found the data"


def test_only_the_network_whose_turn_it_is_moves(tmp_path):
    run = Trainer(Duel(), SHORT, 0)
    for step in range(4):
        before = {name: nn.utils.parameters_to_vector(net.parameters()).clone() for name, net in run.networks.items()}
        run.step(run.fetch(step))
        for name, net in run.networks.items():
            stayed = torch.equal(nn.utils.parameters_to_vector(net.parameters()), before[name])
            assert stayed == (name not in run.part.turns(step))
            assert all(parameter.grad is None for parameter in net.parameters()), "no gradient waits for a later turn"


def test_a_row_in_which_only_the_other_network_moved_is_logged(tmp_path):
    _, fit_duel = start_of(Duel, replace(SHORT, images=32, log_images=8), tmp_path)
    rows = fit_duel().history
    assert [("loss" in row, "critic_loss" in row) for row in rows] == [(False, True), (True, False)] * 2


def test_the_history_knows_whose_a_number_is_whatever_its_name(tmp_path):
    class Named(Duel):
        """Its main network reports scalars named like those of the other, and like the count of updates."""

        def loss(self, network, nets, batch, draws):
            loss, extra = super().loss(network, nets, batch, draws)
            return loss, {**extra, "critic_size": loss, "good_turns": loss} if network == "generator" else extra

        def turns(self, step):
            return ("critic", "generator") if step % 3 == 0 else ("generator",)

    _, fit_duel = start_of(Named, replace(SHORT, images=48), tmp_path)
    for row in fit_duel().history:
        assert row["critic_size"] == row["good_turns"] == row["loss"]


def test_a_network_may_have_a_learning_rate_of_its_own():
    run = Trainer(Duel(), SHORT, 0)
    run.part.rates = {"critic": 0.1}
    for step in range(2):
        run.step(run.fetch(step))
    used = {name: optimizer.param_groups[0]["lr"] for name, (optimizer,) in run.optimizers.items()}
    assert used["generator"] == learning_rate(SHORT, SHORT.batch)
    assert used["critic"] == pytest.approx(0.1 * learning_rate(SHORT, 0))


def test_the_budget_and_the_history_count_images(tmp_path):
    line, fit_line = start_of(Line, replace(SHORT, images=100), tmp_path)  # rounded up to whole batches
    seen, rows = [], []
    found = fit_line(on_step=seen.append, on_row=[rows.append])
    assert seen == list(range(0, 105, 8))
    assert [row["images"] for row in found.history] == [24, 48, 72, 96, 104]
    assert rows == found.history
    used = np.array(line.rows).ravel()
    assert used.shape == (104,)
    for epoch in range(5):
        assert sorted(used[20 * epoch : 20 * epoch + 20]) == list(range(20))


def test_a_history_row_averages_the_steps_since_the_last_one(tmp_path):
    _, fit_line = start_of(Line, replace(SHORT, log_images=8), tmp_path / "fine")
    _, fit_coarse = start_of(Line, SHORT, tmp_path / "coarse")
    each, third = ([row["loss"] for row in call().history] for call in (fit_line, fit_coarse))
    assert third == pytest.approx(np.array(each).reshape(4, 3).mean(1), rel=1e-6)


def test_the_learning_rate_rises_linearly_then_stays_or_falls_as_a_cosine():
    constant = replace(SHORT, images=1000, batch=10, lr=0.5, warmup_images=100, decay="constant")
    assert learning_rate(constant, 0) == pytest.approx(0.05)  # the first step is not lost
    assert learning_rate(constant, 40) == pytest.approx(0.25)
    assert [learning_rate(constant, seen) for seen in (90, 500, 990)] == pytest.approx([0.5] * 3)
    cosine = replace(constant, decay="cosine")
    assert learning_rate(cosine, 500) == pytest.approx(0.25)
    assert learning_rate(cosine, 250) == pytest.approx(0.5 * (2 + math.sqrt(2)) / 4)
    assert learning_rate(cosine, 1000) == pytest.approx(0)
    assert learning_rate(replace(constant, warmup_images=0), 0) == 0.5


@pytest.fixture
def updates():
    """The learning rate and gradient norm of each optimiser step."""
    found: list[tuple[float, float]] = []

    def record(optimizer, *_):
        group = optimizer.param_groups[0]
        norm = torch.cat([p.grad.flatten() for p in group["params"]]).norm().item()
        found.append((group["lr"], norm))

    hook = register_optimizer_step_pre_hook(record)
    yield found
    hook.remove()


def test_the_optimiser_follows_the_learning_rate(updates, tmp_path):
    start_of(Line, SHORT, tmp_path)[1]()
    assert [rate for rate, _ in updates] == [learning_rate(SHORT, seen) for seen in range(0, 96, 8)]


@pytest.mark.parametrize("clip", [0.1, 0])
def test_gradients_are_clipped_to_the_limit_and_logged_as_they_were(clip, updates, tmp_path):
    _, fit_line = start_of(lambda: Line(scale=100.0), replace(SHORT, clip=clip, log_images=8), tmp_path)
    logged = [row["grad_norm"] for row in fit_line().history]
    assert min(logged) > 10
    applied = [norm for _, norm in updates]
    assert applied == pytest.approx([clip] * 12 if clip else logged, rel=1e-4)


def test_the_average_forgets_half_in_a_half_life():
    net = nn.Linear(3, 3)
    ema = EMA(net, half_life=64)
    before = [p.clone() for p in ema.average.parameters()]
    for parameter in net.parameters():
        nn.init.zeros_(parameter)
    for step in range(8):
        ema.update(8, seen=100_000 + 8 * step)
    for old, new in zip(before, ema.average.parameters()):
        torch.testing.assert_close(new, old / 2)
    ema.update(8, seen=160)  # a young run: the half-life is a twentieth of it, here one batch
    for old, new in zip(before, ema.average.parameters()):
        torch.testing.assert_close(new, old / 4)


def test_the_result_is_the_average_of_the_weights_along_the_run(tmp_path):
    line, fit_line = start_of(Line, SHORT, tmp_path)
    net, average = line.networks["net"], line.networks["net"].weight.detach().clone()

    def follow(seen: int) -> None:
        if seen:
            average.lerp_(net.weight.detach(), 1 - 0.5 ** (8 / min(32, seen / 20)))

    found = fit_line(on_step=follow)
    torch.testing.assert_close(found.weights["weight"], average)
    assert not torch.equal(found.weights["weight"], net.weight)


def test_the_average_counts_the_images_of_the_main_network_and_moves_with_it_alone(tmp_path):
    """The generator is updated at every second step; after 320 images of its own the half-life is at its full value."""
    training = replace(SHORT, images=960, ema_images=16, lr=0.02, decay="constant")
    duel, fit_duel = start_of(Duel, training, tmp_path)
    net = duel.networks["generator"]
    average, moved = net.weight.detach().clone(), 0

    def follow(seen: int) -> None:
        nonlocal moved
        if seen and seen % 16 == 0:
            moved += 8
            average.lerp_(net.weight.detach(), 1 - 0.5 ** (8 / min(16, moved / 20)))

    found = fit_duel(on_step=follow, checkpoint_seconds=1000.0)
    assert moved == 480
    torch.testing.assert_close(found.weights["weight"], average, rtol=0, atol=1e-6)


@pytest.mark.parametrize("part", [Line, Duel])
def test_without_an_average_the_result_is_the_network_itself(part, tmp_path):
    made, fit_part = start_of(part, replace(SHORT, ema_images=0), tmp_path)
    found = fit_part()
    torch.testing.assert_close(found.weights, made.networks[made.main].state_dict(), rtol=0, atol=0)


def test_tf32_is_allowed_while_a_training_runs_and_no_longer(tmp_path):
    """What the same process samples or measures afterwards has the numbers of a process of its own."""
    matmul, seen = torch.backends.cuda.matmul, []
    _, fit_line = start_of(Line, SHORT, tmp_path)
    fit_line(on_step=lambda images: seen.append(matmul.allow_tf32))
    assert seen and all(seen) and not matmul.allow_tf32


def test_a_loss_that_is_not_finite_ends_the_run_in_an_error_that_names_the_part(tmp_path):
    _, fit_line = start_of(lambda: Line(scale=math.nan), SHORT, tmp_path)
    with pytest.raises(FloatingPointError, match="line.*nan.*24"):
        fit_line(checkpoint_seconds=60.0)  # a checkpoint would find the weights first


def test_weights_that_the_last_update_breaks_are_an_error_though_no_loss_tells(tmp_path):
    _, fit_line = start_of(Line, replace(SHORT, images=8, lr=1e38, warmup_images=0, decay="constant"), tmp_path)
    with pytest.raises(FloatingPointError, match="weights of line were not finite by image 8 .*training.lr"):
        fit_line()


def test_a_checkpoint_of_weights_that_are_not_finite_is_not_written(tmp_path):
    broken = replace(SHORT, images=96, lr=1e38, warmup_images=0, decay="constant", log_images=96)
    _, fit_line = start_of(Line, broken, tmp_path)
    with pytest.raises(FloatingPointError, match="weights of line were not finite by image 8 "):
        fit_line()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_all_that_decides_the_weights_is_part_of_the_key_of_their_checkpoints(tmp_path, monkeypatch):
    from stages.common import fitting, keys

    file, loss = tmp_path / "input", tmp_path / "stages" / "vae.py"
    file.write_text("contents")
    loss.parent.mkdir()
    loss.write_text("x.square()")
    monkeypatch.setattr(keys, "ROOT", tmp_path)
    training = {"images": 100}
    section = {"method": "m", "kind": "msf", "dataset": "full", "index": 0, "training": training}
    section["network"] = {"depth": 1, "width": 8, "heads": 1, "patch": 1}

    def key(seed: int = 0, section: dict = section, **change) -> str:
        part = FlowPart(**section | {"training": training | change})
        return fitting.job("m", scale_part, part, seed, [file], tmp_path, "vae").key

    first = key()
    assert key() == first
    others = [key(lr=0.1), key(images=101), key(seed=1), key(section=section | {"label_dropout": 0.2})]
    file.write_text("other contents")
    others.append(key())
    file.write_text("contents")
    loss.write_text("x.abs()")
    others.append(key())
    loss.write_text("x.square()")
    monkeypatch.setattr(fitting, "resolve_precision", lambda *given: "another")
    others.append(key())
    assert len({first, *others}) == 8


def data_parallel(rank: int, folder: str) -> None:
    """One of two workers: trains each part, and writes its results or its error."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for kind, parallel, stop, how in SPREAD:
        name = f"{kind}-{parallel}-{stop}{how}"
        try:
            if stop:
                with pytest.raises(Interrupted):
                    train_alone(kind, Path(folder) / name, parallel, stop)
            found: object = train_alone(kind, Path(folder) / name, parallel, how=how)
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        (Path(folder) / f"{name}-{rank}.json").write_text(json.dumps(found))
    (Path(folder) / f"shared-{rank}.json").write_text(json.dumps(shared_with_the_average()))
    (Path(folder) / f"frozen-{rank}.json").write_text(json.dumps(frozen_in_bf16()))
    dist.destroy_process_group()


def frozen_in_bf16() -> list:
    """The types of frozen shards, and whether they compute what shards of a trained network do."""
    cpu = torch.device("cpu")
    workers, types, outputs = Workers("fsdp", cpu), [], []
    for trained in (False, True):
        torch.manual_seed(0)
        part = scale_part()
        net = part.networks["net"].requires_grad_(trained)
        for parameter in net.parameters():
            parameter.data += 0.1 * torch.randn(parameter.shape)
        shards = workers.place(net, torch.contiguous_format, "bf16")
        types.append(sorted({str(p.dtype) for p in shards.parameters()}))
        with torch.no_grad(), autocast("bf16", cpu):
            held = Held(list(range(4)), torch.full((4,), 0.5), 0)
            outputs.append(part.errors(shards, part.data[torch.arange(4)], held))
    return [types[0], torch.equal(*outputs)]


def shared_with_the_average() -> list[bool]:
    """Whether the average has the network's own shards of what lies under an adapter, and whether copies are gone."""
    part, copies, share = student_part(2, "teacher"), [], EMA.share

    def watched(ema, device):
        copies.extend(weakref.ref(p) for key, p in ema.average.named_parameters() if "lora" not in key)
        share(ema, device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EMA, "share", watched)
        run = Trainer(part, replace(SHORT, precision="fp32"), 0, "fsdp")
    run.step(run.fetch(0))
    run.validate()
    gc.collect()
    pairs = zip(run.ema.average.named_parameters(), run.ema.net.parameters(), strict=True)
    frozen = [mine is its for (key, mine), its in pairs if "lora" not in key]
    return [*frozen, len(copies) == len(frozen), *(copy() is None for copy in copies)]


def train_alone(
    kind: str, folder: Path, parallel: str = "ddp", stop: int | None = None, how: str = ""
) -> tuple[list, dict, dict, dict]:
    """History and weights, the types of shards of each frozen network and those that layers of MSF see, the network."""
    torch.manual_seed(0)
    part = BUILD[kind]()
    images = 32 if kind in STUDENTS else SHORT.images
    training = replace(SHORT, **{"images": images, "precision": "fp32"} | HOW[how])
    every = 0.0 if stop else 1000.0
    checkpoints, dtypes = Checkpoints(folder, kind, "key"), set()
    if kind == "msf":
        attention = part.networks["net"].blocks[0].attention
        attention.register_forward_pre_hook(lambda layer, _: dtypes.add(str(layer.qkv.weight.dtype)))
    last = {}
    observe = (lambda seen, weights: last.update(weights)) if first_worker() else None
    found = fit(part, training, 0, checkpoints, (), stop_at(stop), parallel, every, observe)
    assert found.weights.keys() == last.keys() and all(torch.equal(found.weights[key], last[key]) for key in last)
    types = {
        name: sorted({str(p.dtype) if isinstance(p, DTensor) else "whole" for p in net.parameters()})
        for name, net in part.frozen.items()
    }
    net = part.networks[part.main].state_dict()
    return found.history, listed(found.weights), types | {"in": sorted(dtypes)}, listed(net)


def listed(tensors: dict) -> dict:
    return {key: whole(value).tolist() for key, value in tensors.items()}


@pytest.fixture(scope="module")
def of_two_workers(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    workers = mp.spawn(data_parallel, (str(folder),), nprocs=2, join=False)
    for _ in range(120):
        if workers.join(timeout=5):
            return folder
    for process in workers.processes:
        process.kill()
    return pytest.fail("the two workers wait for each other")


def found_by(folder: Path, name: str) -> tuple[list, dict, dict]:
    first, second = (json.loads((folder / f"{name}-{rank}.json").read_text()) for rank in (0, 1))
    assert not isinstance(first, str), first
    history, weights, types, net = second
    assert (history, types, net) == (first[0], *first[2:]), "both workers end with the same history and network"
    assert first[1] and not weights, "the first alone holds the result"
    return first[:3]


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", list(BUILD))
def test_two_workers_train_as_one(kind, parallel, of_two_workers, tmp_path):
    first = found_by(of_two_workers, f"{kind}-{parallel}-None")
    history, weights, *_ = train_alone(kind, tmp_path)
    assert [row["images"] for row in first[0]] == [row["images"] for row in history]
    for ours, theirs in zip(first[0], history):
        assert ours == pytest.approx(theirs, rel=1e-4)
    for name, values in weights.items():
        torch.testing.assert_close(torch.tensor(first[1][name]), torch.tensor(values), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("how, tolerance", [("-passes", 1e-4), ("-recomputed", 1e-4), ("-bf16", 2e-2)])
def test_two_workers_train_as_one_in_passes_recomputed_and_in_bf16(how, tolerance, parallel, of_two_workers, tmp_path):
    history, _, seen = found_by(of_two_workers, f"msf-{parallel}-None{how}")
    assert ("torch.bfloat16" in seen["in"]) == (how == "-bf16" and parallel == "fsdp")  # validation is in fp32
    expected, *_ = train_alone("msf", tmp_path, how="-bf16" if how == "-bf16" else "")
    assert [row["images"] for row in history] == [row["images"] for row in expected]
    for ours, theirs in zip(history, expected):
        assert ours == pytest.approx(theirs, rel=tolerance)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", STUDENTS)
def test_a_teacher_of_its_own_is_spread_over_the_workers_as_its_student_is(kind, parallel, of_two_workers):
    types = found_by(of_two_workers, f"{kind}-{parallel}-None")[2]
    held = {} if kind.startswith("adapters") else {"teacher": ["torch.float32" if parallel == "fsdp" else "whole"]}
    assert types == {"in": []} | held


def test_frozen_shards_are_held_in_the_type_that_they_are_exchanged_in(of_two_workers):
    for rank in (0, 1):
        assert json.loads((of_two_workers / f"frozen-{rank}.json").read_text()) == [["torch.bfloat16"], True]


def test_shards_of_what_lies_under_an_adapter_stand_once(of_two_workers):
    for rank in (0, 1):
        found = json.loads((of_two_workers / f"shared-{rank}.json").read_text())
        assert len(found) > 3 and all(found)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", ["msf", "duel"])
def test_two_workers_interrupted_between_two_rows_go_on_to_the_same_weights_and_history(kind, parallel, of_two_workers):
    name = f"{kind}-{parallel}"
    assert found_by(of_two_workers, f"{name}-40") == found_by(of_two_workers, f"{name}-None")


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_checkpoint_of_two_workers_holds_full_tensors_that_one_goes_on_from(parallel, of_two_workers, tmp_path):
    shutil.copytree(of_two_workers / f"msf-{parallel}-40", tmp_path / "left")
    history, *_ = train_alone("msf", tmp_path / "left")
    expected, *_ = found_by(of_two_workers, f"msf-{parallel}-None")
    assert [row["images"] for row in history] == [row["images"] for row in expected]
    for ours, theirs in zip(history, expected):
        assert ours == pytest.approx(theirs, rel=1e-4), "the sums of both workers went into the first row"


def test_of_the_shards_of_two_workers_only_what_is_whole_is_loaded(of_two_workers, tmp_path, caplog):
    shutil.copytree(of_two_workers / "msf-fsdp-40", tmp_path / "left")
    checkpoints = Checkpoints(tmp_path / "left", "msf", "key")
    older, newest = sorted(checkpoints.folder.iterdir())
    assert [int(folder.name) for folder in (older, newest)] == [24, 32]
    tensors, about = checkpoints.load()
    assert about["seen"] == 32 and all(not isinstance(value, DTensor) for value in tensors.values())
    shard = max(newest.glob("*.distcp"), key=lambda path: path.stat().st_size)
    assert len(list(newest.glob("*.distcp"))) == 2, "each worker wrote its own"
    with flipped(shard, shard.stat().st_size // 2, 3):
        assert checkpoints.load()[1]["seen"] == 24
    assert shard.name in caplog.text
    (newest / "checksums.json").unlink()  # killed before it was written
    assert checkpoints.load()[1]["seen"] == 24


if __name__ == "__main__":
    run_stage(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]))
