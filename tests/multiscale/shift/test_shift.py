"""The resolution shift (docs/resolution-shift.md): the noise of each resolution, its steps, and no training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import TRAINING, replace
from safetensors.torch import save_file
from torch import Tensor, nn

from multiscale.core import models
from multiscale.core.models import ModelConfig
from multiscale.core.normalisation import Normalisation
from multiscale.core.settings import Bad
from multiscale.core.streams import Draws
from multiscale.methods.shift import teaching
from multiscale.methods.shift.parts import ShiftConfig, build_student
from multiscale.methods.shift.sampler import ShiftSampler
from multiscale.methods.shift.schedule import Schedule, corrected, enlarged
from multiscale.methods.shift.settings import Shifted, ShiftMethod
from multiscale.networks.autoencoder import Codec
from multiscale.networks.dit import DiTNetwork
from multiscale.training.checkpoint import Checkpoints
from multiscale.training.loop import fit

DIT = {"depth": 1, "width": 16, "heads": 2, "patch": 2}
UNIT = {"shift": [0.0], "scale": [1.0]}
SCHEDULE = {"resolutions": [4, 8], "levels": [1.0, 0.6]}


def test_the_corrected_noise_has_the_same_ratio_in_the_means_of_blocks():
    """By hand: half noise at half the resolution is two thirds at the full one."""
    assert corrected(torch.tensor(0.5), 2).item() == pytest.approx(2 / 3)
    assert corrected(torch.tensor(2 / 3), 0.5).item() == pytest.approx(0.5)
    level = torch.tensor(0.3, dtype=torch.float64)
    large = corrected(level, 3)
    noise = torch.randn(2000, 1, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    means = torch.nn.functional.avg_pool2d(large * noise, 3)
    assert float(means.std() / (1 - large)) == pytest.approx(float(level / (1 - level)), rel=0.01)


def test_an_enlarged_latent_has_white_noise_of_its_level():
    clean, noise = torch.full((1, 1, 4, 4), 2.0), torch.randn(1, 1, 8, 8)
    torch.testing.assert_close(enlarged(clean, torch.tensor(0.25), noise), 1.5 + 0.25 * noise)


class Oracle(nn.Module):
    """The velocity of the straight path to a known image of each resolution; records what it is asked."""

    def __init__(self, z: Tensor):
        super().__init__()
        self.z, self.seen = z, []

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        self.seen.append((x.shape[-1], round(float(t[0]), 4)))
        z = torch.nn.functional.adaptive_avg_pool2d(self.z, x.shape[-1])
        return (x - z) / t.view(-1, 1, 1, 1)


def config() -> ShiftConfig:
    network, latent = DiTNetwork.model_validate(DIT), Normalisation.model_validate(UNIT)
    return ShiftConfig(
        channels=1, classes=3, latent=latent, schedule=Schedule.model_validate(SCHEDULE), network=network
    )


# By hand: the four steps are at 1, 0.75, 0.5 and 0.25 of the full resolution; half of it divides s by s + 2 (1 - s).
STEPS = {True: [(4, 1.0), (4, 0.6), (8, 0.5), (8, 0.25)], False: [(4, 1.0), (4, 0.75), (8, 0.5), (8, 0.25)]}


@pytest.mark.parametrize("steps", [5, 10, 20, 50])
def test_a_level_at_the_time_of_a_step_is_reached_by_it(steps):
    """0.8 in fp32 is a little more than the level 0.8, and 0.6 a little more than 0.6."""
    times = torch.linspace(1, 0, steps + 1)
    for level in (0.8, 0.6, 0.4, 0.2):
        schedule = Schedule(resolutions=[16, 32], levels=[1.0, level])
        low = [round(float(time), 4) for time in times if schedule.at(float(time)) == 16]
        assert low == [round(1 - k / steps, 4) for k in range(steps) if k * 10 < steps * round(10 - 10 * level)]


@pytest.mark.parametrize("correction", STEPS)
def test_the_first_steps_are_small_and_their_noise_is_corrected(correction):
    z = torch.rand(1, 1, 8, 8)
    settings = ShiftMethod.model_validate({"kind": "shift", "solver": {"steps": 4}, "correction": correction})
    oracle, frames = Oracle(z), []
    sampler = ShiftSampler(oracle, config(), settings, Codec(None, 1), "fp32")
    made = sampler([0, 1], torch.tensor([0, 1]), lambda caption, images: frames.append(caption))
    assert oracle.seen == STEPS[correction]
    assert frames == ["4 px", "8 px", "8 px", "8 px"]
    torch.testing.assert_close(made, ((z + 1) / 2).expand(2, -1, -1, -1), atol=1e-5, rtol=0)


def test_the_time_shift_and_the_guidance_are_those_of_the_solver():
    """By hand: 3 u / (1 + 2 u) is 1, 0.9, 0.75, 0.5, and s / (s + 2 (1 - s)) of the first three 1, 9/11, 3/5."""
    solver = {"steps": 4, "shift": 3.0, "guidance_scale": 2.0}
    rows: list[int] = []
    oracle = Oracle(torch.rand(1, 1, 8, 8))
    oracle.register_forward_pre_hook(lambda net, inputs: rows.append(len(inputs[0])))
    settings = ShiftMethod.model_validate({"kind": "shift", "solver": solver})
    ShiftSampler(oracle, config(), settings, Codec(None, 1), "fp32")([0, 1], torch.tensor([0, 1]))
    assert oracle.seen == [(4, 1.0), (4, round(9 / 11, 4)), (4, 0.6), (8, 0.5)]
    assert rows == [4, 4, 4, 4], "classes and no class in one batch"


def test_where_the_resolution_grows_the_noise_is_that_of_the_step():
    """Two steps, with a network whose clean image is constant: what the second is given can be worked out."""
    seen: list[Tensor] = []

    class Constant(nn.Module):
        def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
            seen.append(x)
            return (x - 2.0) / t.view(-1, 1, 1, 1)

    settings = ShiftMethod.model_validate({"kind": "shift", "solver": {"steps": 2}})
    ShiftSampler(Constant(), config(), settings, Codec(None, 1), "fp32")(list(range(400)), torch.zeros(400).long())
    small, large = seen
    assert small.shape[-1] == 4 and abs(small.std().item() - 1) < 0.02
    assert large.shape[-1] == 8 and large.mean().item() == pytest.approx(1, abs=0.02)
    assert large.std().item() == pytest.approx(0.5, rel=0.02)
    rows = large - large.mean()
    assert abs((rows[..., :-1] * rows[..., 1:]).mean() / rows.square().mean()) < 0.02, "it is white"


@pytest.fixture
def teacher(tmp_path) -> Path:
    """A teacher with random weights, and the pyramid that it was trained on, in folders."""

    class Teacher(ModelConfig):
        channels: int
        classes: int
        latent: Normalisation
        network: DiTNetwork
        resolution: int

    data, folder = tmp_path / "pyramid", tmp_path / "teacher"
    data.mkdir(), folder.mkdir()
    z = {"z16": torch.randn(8, 1, 4, 4), "z32": torch.randn(8, 1, 8, 8)}
    save_file(z | {"label": torch.arange(8) % 3}, data / "targets.safetensors")
    (data / "statistics.json").write_text(json.dumps({"classes": 3, "latent": UNIT, "grids": {"16": 4, "32": 8}}))
    about = {"kind": "swd", "role": "teacher", "channels": 1, "classes": 3, "latent": UNIT, "network": DIT}
    found = Teacher.model_validate(about | {"resolution": 8})
    net = found.network.build(1, 1, 3)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    models.save(folder, net.state_dict(), found)
    return folder


def section(training: dict | None = None) -> Shifted:
    schedule = {"resolutions": [16, 32], "levels": [1.0, 0.6]}
    about = {"method": "shift", "kind": "shift", "teacher": "t", "dataset": "pyramid", "schedule": schedule}
    return Shifted.model_validate(about | {"training": training or TRAINING.model_dump()})


def test_nothing_is_trained(teacher, tmp_path):
    """Whatever the common settings: the weights are the teacher's bits, and the history counts no image."""
    common = replace(TRAINING, optimizer="muon", weight_decay=0.1, images=96).model_dump()
    settings = section(common)
    part = build_student("shift", settings, tmp_path / "pyramid", teacher)
    found = fit(part, settings.training, 0, Checkpoints(tmp_path / "scratch", "shift", "key"))
    before = models.load_weights(part.config.build(), teacher).state_dict()
    assert found.weights.keys() == before.keys()
    assert all(torch.equal(found.weights[key], before[key]) for key in before)
    (row,) = found.history
    assert row["images"] == 0 and row["loss"] > 0.1 and row["grad_norm"] == 0
    assert part.config.schedule.resolutions == [4, 8] and part.config.schedule.levels == [1.0, 0.6]


def test_the_loss_that_is_measured_is_the_teachers_at_the_full_resolution(teacher, tmp_path):
    """E || v(x_t, t, c) - (eps - z) ||^2 with t uniform, for a velocity that is its time and its class."""
    part = build_student("shift", section(), tmp_path / "pyramid", teacher)
    draws, rows = Draws(0, "shift", 0, 8, slice(0, 8), torch.device("cpu")), part.data[torch.arange(8)]
    noise, t = draws.normal("noise", 1, 8, 8), draws.uniform("time").view(-1, 1, 1, 1)
    velocity = t + rows["label"].view(-1, 1, 1, 1)
    net = lambda x, t, labels: (t + labels).view(-1, 1, 1, 1).expand_as(x)  # noqa: E731
    loss, _ = part.loss("net", {"net": net}, rows, draws)
    torch.testing.assert_close(loss, (velocity - (noise - rows["z32"])).square().mean())


def test_a_model_of_one_resolution_is_no_teacher(teacher, tmp_path):
    teaching.check(section(), teacher, tmp_path)
    about = json.loads((teacher / models.CONFIG).read_text())
    (teacher / models.CONFIG).write_text(json.dumps(about | {"kind": "msf", "role": "scale"}))
    with pytest.raises(Bad, match="holds kind msf, role scale"):
        teaching.check(section(), teacher, tmp_path)


@pytest.mark.parametrize(
    "changes, key",
    [
        ({"resolutions": [8, 4]}, "resolutions"),
        ({"resolutions": [4, 4]}, "resolutions"),
        ({"levels": [1.0]}, "levels"),
        ({"levels": [0.9, 0.5]}, "levels"),
        ({"levels": [1.0, 1.0]}, "levels"),
        ({"levels": [1.0, 0.0]}, "levels"),
        ({"levels": [1.0, 0.5, 0.2]}, "levels"),
    ],
)
def test_a_schedule_that_does_not_grow_or_fall_is_refused(changes, key):
    with pytest.raises(ValueError, match=key):
        Schedule.model_validate(SCHEDULE | changes)
