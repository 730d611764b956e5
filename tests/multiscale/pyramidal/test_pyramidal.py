"""The identities of docs/pyramidal-flow.md: segments, their velocity, and the jumps between them."""

from __future__ import annotations

import pytest
import torch
from conftest import TRAINING
from torch import Tensor, nn

from multiscale import flow
from multiscale.core.normalisation import Normalisation
from multiscale.core.storage import Table
from multiscale.core.streams import Draws, Held
from multiscale.flow import Solver
from multiscale.methods.pyramidal import path
from multiscale.methods.pyramidal.parts import FlowPart, PyramidalConfig
from multiscale.methods.pyramidal.sampler import PyramidalSampler
from multiscale.methods.pyramidal.settings import PyramidalMethod, PyramidalPart
from multiscale.networks.autoencoder import Codec
from multiscale.networks.dit import DiTNetwork

DIT = {"depth": 1, "width": 16, "heads": 2, "patch": 1}
JUMPS = [0.75, 0.375]
UNIT = Normalisation(shift=[0.0], scale=[1.0])


def basis(side: int) -> Tensor:
    """The unit vectors of images of one channel, (side^2, 1, side, side)."""
    return torch.eye(side**2, dtype=torch.float64).view(-1, 1, side, side)


def test_resolutions_are_means_of_blocks():
    z = torch.arange(16.0).view(1, 1, 4, 4)
    coarse, fine = path.pyramid(z, 2)
    assert fine is z and coarse.flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert path.up(coarse)[0, 0, :2].tolist() == [[2.5, 2.5, 4.5, 4.5]] * 2
    assert torch.equal(path.down(path.up(coarse)), coarse)


@pytest.mark.parametrize("end, start", [(2 / 3, 4 / 5), (1 / 3, 1 / 2), (1 / 2, 2 / 3)])
def test_a_segment_starts_where_the_paper_says(end, start):
    """By hand; the paper's e = 2 s / (1 + s) in its own time, which runs from noise to data."""
    first, second = path.segments([end])
    assert (first.start, first.end, second.end) == (1, end, 0)
    assert second.start == pytest.approx(start)
    assert 1 - end == pytest.approx(2 * (1 - start) / (1 + (1 - start)))
    shifted = flow.shifted(torch.tensor(end, dtype=torch.float64), 2)
    assert second.start == pytest.approx(float(shifted)), "the time shift of twice the resolution"


@pytest.mark.parametrize("end", [0.2, 0.5, 0.9])
def test_after_a_jump_mean_and_covariance_are_those_of_the_next_start(end):
    """Exactly, by the matrices of the jump: x = (1 - e) z + e n, n white, becomes (1 - s) Up(z) + white noise of s."""
    before, after = path.segments([end])
    brought = path.jump(basis(4), before, after, torch.zeros(16, 1, 8, 8, dtype=torch.float64)).flatten(1).T
    added = path.jump(torch.zeros(64, 1, 4, 4, dtype=torch.float64), before, after, basis(8)).flatten(1).T
    covariance = end**2 * brought @ brought.T + added @ added.T
    torch.testing.assert_close(covariance, after.start**2 * torch.eye(64, dtype=torch.float64))
    mean = (1 - end) * brought
    torch.testing.assert_close(mean, (1 - after.start) * path.up(basis(4)).flatten(1).T)


def test_the_noise_of_a_jump_has_the_papers_covariance():
    """Eq. 15 in its time s' = 1 - s: (1 + s') / 2 Up(x) + sqrt(3) (1 - s') / 2 n', n' with -1/3 within a block."""
    before, after = path.segments([0.5])
    time = 1 - after.start
    added = path.jump(torch.zeros(4, 1, 1, 1, dtype=torch.float64), before, after, basis(2)).flatten(1).T
    block = torch.full((4, 4), -1 / 3, dtype=torch.float64).fill_diagonal_(1)
    torch.testing.assert_close(added @ added.T, 3 / 4 * (1 - time) ** 2 * block)
    assert torch.linalg.eigvalsh(block)[0] == pytest.approx(0, abs=1e-12), "less than -1/3 is no covariance"
    one = torch.ones(1, 1, 1, 1)
    assert path.jump(one, before, after, None).flatten().tolist() == pytest.approx([(1 + time) / 2] * 4)


def test_a_jump_keeps_the_means_of_each_image():
    before, after = path.segments([0.5])
    x, noise = torch.randn(3, 2, 4, 4), torch.randn(3, 2, 8, 8)
    made = path.jump(x, before, after, noise)
    torch.testing.assert_close(path.down(made), 2 / 3 * x)
    assert (made - path.jump(x, before, after, None)).std() > 0.5
    assert torch.equal(path.jump(x, before, after, None), path.up(made.new_tensor(2 / 3) * x))


class Oracle(nn.Module):
    """The velocity of the paths to one known latent; the resolution tells the segment, the level the place in it."""

    def __init__(self, known: list[Tensor]):
        super().__init__()
        self.known = known
        self.seen: list[tuple[int, float]] = []
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        sides = [each.shape[-1] for each in self.known]
        k = sides.index(x.shape[-1])
        self.seen.append((x.shape[-1], round(float(t[0]), 6)))
        segment = path.segments(JUMPS)[k]
        u = ((t - segment.end) / (segment.start - segment.end)).view(-1, 1, 1, 1)
        z = self.known[k].expand(len(x), -1, -1, -1)
        before = path.up(self.known[k - 1]).expand_as(z) if k else torch.zeros_like(z)
        clean = u * (1 - segment.start) * before + (1 - u) * (1 - segment.end) * z
        noise = (x - clean) / t.view(-1, 1, 1, 1)
        start, end = segment.points(z, self.known[k - 1].expand(len(x), -1, -1, -1) if k else None, noise)
        return start - end + 0 * self.weight


def config() -> PyramidalConfig:
    network = DiTNetwork.model_validate(DIT)
    return PyramidalConfig(channels=1, resolution=8, classes=3, latent=UNIT, jumps=JUMPS, network=network)


def section(**changes: object) -> PyramidalPart:
    about = {"method": "p", "kind": "pyramidal", "dataset": "d", "network": DIT, "jumps": JUMPS, "training": TRAINING}
    return PyramidalPart.model_validate(about | changes)


@pytest.mark.parametrize("columns", [["z8", "z16", "z32"], ["z32"]])
def test_the_loss_of_a_perfect_velocity_is_zero_on_every_segment(columns):
    """The coarser latents are those of smaller images, or the means of the full one."""
    known = {f"z{4 * side}": torch.randn(1, 1, side, side) for side in (2, 4, 8)}
    latents = [known[column] for column in columns]
    oracle = Oracle(latents if len(columns) == 3 else path.pyramid(known["z32"], 3))
    part = FlowPart("p", Table({"label": torch.zeros(6).numpy()}), oracle, config(), section(), columns)
    batch = {name: each.expand(6, -1, -1, -1) for name, each in known.items()} | {"label": torch.arange(6) % 3}
    for step in range(12):
        draws = Draws(0, "p", step, 6, slice(0, 6), torch.device("cpu"))
        loss, _ = part.loss("net", {"net": oracle}, batch, draws)
        assert loss < 1e-9
    assert {side for side, _ in oracle.seen} == {2, 4, 8}
    levels = {side: [level for each, level in oracle.seen if each == side] for side in (2, 4, 8)}
    for side, segment in zip((2, 4, 8), path.segments(JUMPS)):
        assert all(segment.end <= level <= segment.start for level in levels[side])


def test_a_held_out_image_has_the_error_of_the_velocity_on_each_segment():
    known = [torch.randn(6, 1, side, side) for side in (2, 4, 8)]
    columns, table = ["z8", "z16", "z32"], Table({"label": torch.zeros(6).numpy()})
    part = FlowPart("p", table, nn.Module(), config(), section(), columns)
    batch = dict(zip(columns, known)) | {"label": torch.arange(6) % 3}
    assert part.views == 3
    for k, segment in enumerate(path.segments(JUMPS)):
        held = Held(list(range(6)), torch.linspace(0.1, 0.9, 6), k)
        noise = held.normal("noise", *known[k].shape[1:])
        before = path.up(known[k - 1]) if k else 0
        start = (1 - segment.start) * before + segment.start * noise
        end = (1 - segment.end) * known[k] + segment.end * noise
        x = end + held.levels.view(-1, 1, 1, 1) * (start - end)
        levels = segment.end + held.levels * (segment.start - segment.end)
        given: list[Tensor] = []
        found = part.errors(lambda *of: given.extend(of) or start - end + of[2].view(-1, 1, 1, 1), batch, held)  # noqa: B023
        assert torch.allclose(given[0], x, atol=1e-6) and torch.allclose(given[1], levels)
        assert torch.allclose(found, (torch.arange(6) % 3).float() ** 2, atol=1e-5)


class Recorder(nn.Module):
    """A velocity of zero; records the state, level and labels of each call."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        self.seen.append((x, t, labels))
        return torch.zeros_like(x)


@pytest.mark.parametrize("timesteps, low", [("uniform", 0.1), ("logit-normal", 0.014)])
def test_labels_are_dropped_and_places_drawn_as_the_settings_say(timesteps, low):
    """Below 1/10 are a tenth of the uniform places, and Phi(-log 9) = 1.4 % of the logit-normal ones."""
    count, columns = 4000, ["z8", "z16", "z32"]
    table = Table({"label": torch.zeros(count).numpy()})
    settings = section(timesteps=timesteps, label_dropout=0.25)
    part, net = FlowPart("p", table, nn.Module(), config(), settings, columns), Recorder()
    batch = {column: torch.zeros(count, 1, side, side) for column, side in zip(columns, (2, 4, 8))}
    batch |= {"label": torch.arange(count) % 3}
    part.loss("net", {"net": net}, batch, Draws(0, "p", 0, count, slice(0, count), torch.device("cpu")))
    ((x, levels, labels),) = net.seen
    dropped = labels == 3
    assert dropped.float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(labels[~dropped], batch["label"][~dropped])
    segment = part.segments[(2, 4, 8).index(x.shape[-1])]
    places = (levels - segment.end) / (segment.start - segment.end)
    assert (places < 0.1).float().mean().item() == pytest.approx(low, abs=0.01)
    assert places.mean().item() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("steps", [1, 3])
def test_along_a_perfect_velocity_the_sampler_returns_the_latent(steps):
    z = torch.rand(1, 1, 8, 8)
    oracle, solver = Oracle(path.pyramid(z, 3)), Solver(steps=steps)
    settings = PyramidalMethod(kind="pyramidal", scales=[solver] * 3)
    sampler, frames = PyramidalSampler(oracle, config(), settings, Codec(None, 1), "fp32"), []
    made = sampler([0, 1], torch.tensor([0, 1]), lambda caption, images: frames.append(caption))
    torch.testing.assert_close(made, ((z + 1) / 2).expand(2, -1, -1, -1), atol=1e-5, rtol=0)
    assert frames == ["2 px"] * steps + ["4 px"] * steps + ["8 px"] * steps
    firsts = [level for k, (_, level) in enumerate(oracle.seen) if k % steps == 0]
    assert firsts == pytest.approx([1, 6 / 7, 6 / 11], abs=1e-5), "2 e / (1 + e) by hand"


def test_the_noise_of_a_jump_is_of_the_seed_and_can_be_left_out():
    net = config().build()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    asked = ([3, 4], torch.tensor([0, 1]))

    def made(**changes: object) -> Tensor:
        settings = PyramidalMethod(kind="pyramidal", scales=[Solver(steps=2)] * 3, **changes)
        return PyramidalSampler(net, config(), settings, Codec(None, 1), "fp32")(*asked)

    assert torch.equal(made(), made()) and not torch.allclose(made(), made(noise=False), atol=1e-3)


def test_each_resolution_has_the_steps_and_the_guidance_of_its_own_solver():
    """A guided step is one call with twice as many rows."""
    solvers = [Solver(steps=1), Solver(steps=2, guidance_scale=2.0), Solver(steps=3, guidance_scale=0.5)]
    settings, net = PyramidalMethod(kind="pyramidal", scales=solvers), Recorder()
    PyramidalSampler(net, config(), settings, Codec(None, 1), "fp32")([0, 1], torch.tensor([0, 1]))
    assert [(x.shape[-1], len(x)) for x, _, _ in net.seen] == [(2, 2)] + [(4, 4)] * 2 + [(8, 4)] * 3


def test_further_numbers_of_steps_are_those_of_each_resolution():
    solvers = [Solver(steps=1), Solver(steps=2, guidance_scale=2.0)]
    settings = PyramidalMethod(kind="pyramidal", scales=solvers, steps=[5], noise=False)
    wanted = [Solver(steps=5), Solver(steps=5, guidance_scale=2.0)]
    assert settings.at(5) == PyramidalMethod(kind="pyramidal", scales=wanted, noise=False)


def test_solvers_of_other_resolutions_are_refused():
    settings = PyramidalMethod(kind="pyramidal", scales=[Solver()])
    with pytest.raises(ValueError, match="^scales: 1 is not allowed; allowed: 3, one a resolution, or none$"):
        PyramidalSampler(config().build(), config(), settings, Codec(None, 1), "fp32")
