"""SwD's parts and samplers follow the specification: data flow, updates, adapters, resuming, controls."""

from __future__ import annotations

import json

import pytest
import torch
from conftest import TRAINING, replace
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from multiscale.core import models
from multiscale.core.streams import Draws, noise_of_seeds
from multiscale.flow import Solver
from multiscale.methods.msf.parts import ScaleConfig
from multiscale.methods.swd import parts as swd_parts
from multiscale.methods.swd import sampler as swd_sampler
from multiscale.methods.swd import student as distillation
from multiscale.methods.swd.adapter import Beneath, adapted, merged
from multiscale.methods.swd.settings import Student, SwDMethod, Teacher
from multiscale.networks.autoencoder import Codec
from multiscale.networks.dit import DiT
from multiscale.sampling import count_calls
from multiscale.training.checkpoint import Checkpoints
from multiscale.training.loop import Trainer, fit
from multiscale.training.part import Training

CLASSES = 3
NETWORK = {"depth": 2, "width": 32, "heads": 2, "patch": 2}
TEACHER = Teacher.model_validate(
    {"method": "teacher", "kind": "swd", "dataset": "pyramid", "network": NETWORK, "training": {"images": 96}}
)
RESOLUTIONS, SIGMAS = [4, 6, 6, 8], [1.0, 0.8959, 0.7371, 0.6022]
SOLVER = Solver(steps=3, guidance_scale=2.0)
ALL = {"mmd": {}, "dmd": {"weight": 1.0}, "gan": {"weight": 5e-3}, "fake": {"updates": 2}}
LABELS = torch.arange(4) % CLASSES
SEEDS = [1, 2, 3, 4]


def settings_of(**changes) -> Student:
    about = {"method": "swd", "kind": "swd", "dataset": "pyramid", "teacher": "teacher", "block": 0}
    about |= {"schedule": {"resolutions": RESOLUTIONS, "sigmas": SIGMAS}, "training": {"images": 96}}
    return Student.model_validate(about | changes)


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory):
    """The output of the stage `decompose`, for images that are their own latents."""
    folder = tmp_path_factory.mktemp("pyramid")
    torch.manual_seed(0)
    images = nn.functional.interpolate(torch.randn(40, 2, 4, 4), size=(8, 8), mode="bicubic")
    tensors = {
        f"z{resolution}": nn.functional.interpolate(images, size=(resolution, resolution), mode="area")
        for resolution in (4, 6, 8)
    }
    save_file(tensors | {"label": torch.arange(40) % CLASSES}, folder / "targets.safetensors")
    statistics = {"classes": CLASSES, "latent": {"shift": [0.1, 0.2], "scale": [2.0, 3.0]}}
    statistics["grids"] = {"4": 4, "6": 6, "8": 8}
    (folder / "statistics.json").write_text(json.dumps(statistics))
    return folder


def awake(net: nn.Module) -> nn.Module:
    """The network with its zero layers randomised."""
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return net


@pytest.fixture(scope="module")
def teacher(pyramid, tmp_path_factory):
    """The folder of a teacher as its stage saves it."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    part = swd_parts.build_part("teacher", TEACHER, pyramid)
    awake(part.networks["net"])
    part.save(folder)
    return folder


@pytest.fixture
def student(pyramid, teacher):
    """Builds a student with changed settings."""

    def build(**changes):
        torch.manual_seed(0)
        return swd_parts.build_student("swd", settings_of(**changes), pyramid, teacher)

    return build


def draws(step: int, batch: int = 8) -> Draws:
    return Draws(0, "swd", step, batch, slice(0, batch), torch.device("cpu"))


def rows(part, count: int = 8) -> dict[str, Tensor]:
    return part.data[torch.arange(count)]


def steps(part) -> dict[int, int]:
    """The generator's first step for each k."""
    return {part.index(step): step for step in reversed(range(24)) if part.turns(step) == ("generator",)}


def weights(net: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(net.parameters()).detach().clone()


def test_the_teacher_sees_every_resolution_and_drops_some_labels(pyramid, monkeypatch):
    part = swd_parts.build_part("teacher", TEACHER, pyramid)
    seen = []
    monkeypatch.setattr(part.networks["net"], "forward", lambda x, t, c: seen.append((x.shape[-1], c)) or x)
    for step in range(30):
        part.loss("net", part.networks, rows(part), draws(step))
    assert {resolution for resolution, _ in seen} == {4, 6, 8}
    assert any((labels == CLASSES).any() for _, labels in seen)


def test_k_goes_round_and_each_turn_of_the_generator_follows_its_fake_scores_on_one_k(student):
    alone = student()
    assert [alone.turns(step) for step in range(5)] == [("generator",)] * 5
    assert [alone.index(step) for step in range(6)] == [0, 1, 2, 3, 0, 1]
    both = student(dmd={"weight": 1.0})
    assert (alone.cycle, both.cycle) == (4, 4 * 6), "after which networks and k come round"
    assert [both.turns(step)[0] for step in range(12)] == (["fake"] * 5 + ["generator"]) * 2
    assert [both.index(step) for step in range(30)] == [0] * 6 + [1] * 6 + [2] * 6 + [3] * 6 + [0] * 6


def inputs_of(part, monkeypatch, k: int, batch=None) -> Tensor:
    """The generator's input at step k."""
    seen = []
    net = part.networks["generator"]
    monkeypatch.setattr(net, "forward", lambda x, t, c: seen.append((x, t)) or net.final.linear.weight.sum() * x)
    part.loss("generator", part.networks, batch or rows(part), draws(steps(part)[k]))
    (x, t), *_ = seen
    assert torch.equal(t, torch.full((8,), SIGMAS[k]))
    return x


@pytest.mark.parametrize("k", range(4))
def test_the_input_is_the_enlarged_latent_of_the_step_before_noised_at_the_steps_own_resolution(
    k, student, monkeypatch
):
    part = student()
    x = inputs_of(part, monkeypatch, k)
    low = rows(part)[f"z{RESOLUTIONS[max(0, k - 1)]}"]
    low = (
        nn.functional.interpolate(low, size=(RESOLUTIONS[k],) * 2, mode="bicubic")
        if low.shape[-1] != RESOLUTIONS[k]
        else low
    )
    noise = draws(steps(part)[k]).normal("noise", 2, RESOLUTIONS[k], RESOLUTIONS[k])
    torch.testing.assert_close(x, (1 - SIGMAS[k]) * low + SIGMAS[k] * noise)


def test_the_first_step_sees_noise_alone(student, monkeypatch):
    part = student()
    others = {name: x.flip(0) for name, x in rows(part).items()}
    assert torch.equal(inputs_of(part, monkeypatch, 0), inputs_of(part, monkeypatch, 0, others))


def test_the_other_ways_to_enlarge_are_controls(student, monkeypatch):
    truth = rows(student())["z6"]
    x = {name: inputs_of(student(upscaling=name), monkeypatch, 1) for name in "ABC"}
    noise = draws(1).normal("noise", 2, 6, 6)
    torch.testing.assert_close(x["A"], (1 - SIGMAS[1]) * truth + SIGMAS[1] * noise)
    small = (1 - SIGMAS[1]) * rows(student())["z4"] + SIGMAS[1] * draws(1).normal("noise", 2, 4, 4)
    torch.testing.assert_close(x["C"], nn.functional.interpolate(small, size=(6, 6), mode="bicubic"))
    assert not torch.allclose(x["A"], x["B"]) and not torch.allclose(x["B"], x["C"])


@pytest.mark.parametrize("strategy", ["A", "B"])
def test_both_latents_of_a_step_come_in_the_teachers_normalisation(strategy, student, monkeypatch):
    """The one that is noised, smaller but for A, and the one whose features are matched."""
    part = student(upscaling=strategy, mmd={"noised": False})
    part.renormalise, part.teacher = lambda z: 3 * z + 2, Spy(part.teacher)
    x, batch = inputs_of(part, monkeypatch, 1), rows(part)
    low = nn.functional.interpolate(batch["z4"], size=(6, 6), mode="bicubic") if strategy == "B" else batch["z6"]
    noise = draws(1).normal("noise", 2, 6, 6)
    torch.testing.assert_close(x, (1 - SIGMAS[1]) * (3 * low + 2) + SIGMAS[1] * noise)
    real, _ = (state for _, state, *_ in part.teacher.asked)
    torch.testing.assert_close(real, 3 * batch["z6"] + 2)


def test_the_levels_of_noise_have_the_time_shift_of_the_settings(student):
    """With a shift of 1 they are even from 1 to 1/1000."""
    torch.testing.assert_close(student(shift=1.0).grid, torch.linspace(1, 0.001, 28))


class Spy(nn.Module):
    """Records the calls of a teacher."""

    def __init__(self, net):
        super().__init__()
        self.net, self.asked = net, []

    def forward(self, x, t, labels, *, block=None, stop=False):
        asked = ("features", x, t, labels, block, torch.is_grad_enabled()) if stop else ("velocity", x, t, labels)
        self.asked.append(asked)
        return self.net(x, t, labels, block=block, stop=stop)


@pytest.mark.parametrize("noised", [True, False])
def test_both_features_of_a_draw_have_the_same_noise_level_and_class(noised, student):
    part = student(mmd={"noised": noised})
    part.teacher = Spy(part.teacher)
    batch, seen = rows(part), draws(3)
    loss, terms = part.loss("generator", part.networks, batch, seen)
    (_, real, level, labels, block, graded), (_, made, *others) = part.teacher.asked
    assert not graded and others[3] and block == others[2] == 0
    assert torch.equal(level, others[0]) and torch.equal(labels, others[1]) and torch.equal(labels, batch["label"])
    if not noised:
        assert not level.any() and torch.equal(real, batch["z8"])
        return
    assert 0.0089 <= level.min() and level.max() <= 0.6023 and len(level.unique()) > 1
    noise = seen.normal("mmd-noise", 2, 8, 8)
    share = level.view(-1, 1, 1, 1)
    torch.testing.assert_close(real, (1 - share) * batch["z8"] + share * noise)
    sigma = torch.full((8,), SIGMAS[3])
    low = nn.functional.interpolate(batch["z6"], size=(8, 8), mode="bicubic")
    x = (1 - SIGMAS[3]) * low + SIGMAS[3] * seen.normal("noise", 2, 8, 8)
    clean = x - SIGMAS[3] * part.networks["generator"](x, sigma, labels)
    torch.testing.assert_close(made, (1 - share) * clean + share * noise)
    assert loss == terms["mmd"]


def test_the_two_adversarial_terms_of_the_generator_share_one_noised_image(student, monkeypatch):
    part = student(**ALL)
    part.teacher, asked = Spy(part.teacher), []
    fake = part.networks["fake"]
    inner = fake.forward
    monkeypatch.setattr(fake, "forward", lambda x, t, c: asked.append((x, t)) or inner(x, t, c))
    _, terms = part.loss("generator", part.networks, rows(part), draws(steps(part)[2]))
    assert set(terms) == {"mmd", "dmd", "gan"}
    ((x, level),) = asked
    (_, guided, both, labels) = next(entry for entry in part.teacher.asked if entry[0] == "velocity")
    assert torch.equal(guided, torch.cat([x, x])) and torch.equal(both, torch.cat([level, level]))
    assert torch.equal(labels[8:], torch.full((8,), CLASSES)), "guidance asks without a class as well"
    assert level.max() <= 0.7905 and level.min() >= 0.0089


def test_the_discriminator_works_without_the_score_matching(student):
    part = student(mmd={"weight": 0.0}, gan={"weight": 1.0}, fake={"updates": 1})
    loss, terms = part.loss("generator", part.networks, rows(part), draws(1))
    assert set(terms) == {"gan"} and loss == terms["gan"]
    loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in part.networks["generator"].parameters())


def test_the_fake_score_learns_what_the_generator_makes_and_the_head_tells_it_from_data(student):
    part = student(**ALL)
    loss, terms = part.loss("fake", part.networks, rows(part), draws(0))
    assert {"score", "discriminator", "accuracy"} <= set(terms)
    torch.testing.assert_close(loss, terms["score"] + 0.01 * terms["discriminator"])
    loss.backward()
    assert all(p.grad is None for p in part.networks["generator"].parameters())
    assert part.networks["fake"].head[2].weight.grad.any()


def test_the_published_optimiser_is_a_section_of_settings_and_does_what_they_say(student):
    """AdamW by hand, with gradient norms below and above the limit."""
    published = {"warmup_images": 0, "decay": "constant", "beta2": 0.999, "weight_decay": 0.01, "clip": 10.0}
    published |= {"images": 1000, "batch": 8, "lr": 0.01, "ema_images": 0, "precision": "fp32"}  # a visible rate
    part = student(mmd={"weight": 40.0})
    run = Trainer(part, Training.model_validate(published), 0)
    net, first, second, norms = part.networks["generator"], 0.0, 0.0, []
    wanted = weights(net).double()
    for step in range(4):
        batch = run.fetch(step)
        loss, _ = part.loss("generator", part.networks, batch, draws(step))
        gradient = nn.utils.parameters_to_vector(torch.autograd.grad(loss, net.parameters())).double()
        norms.append(gradient.norm().item())
        gradient *= min(1.0, 10 / norms[-1])
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient.square()
        slope = first / (1 - 0.9 ** (step + 1)) / ((second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        wanted = wanted * (1 - 0.01 * 0.01) - 0.01 * slope
        run.step(batch)
        torch.testing.assert_close(weights(net).double(), wanted, rtol=0, atol=5e-6)
        assert torch.equal(weights(run.ema.average), weights(net))
    assert min(norms) < 10 < max(norms)


def test_features_of_the_fake_score_are_the_teachers_until_it_is_trained(student):
    step = 2  # after two updates of the fake score, which have not been made
    terms = [
        part.loss("generator", part.networks, rows(part), draws(step))[1]
        for name in ("teacher", "fake")
        for part in [student(**ALL | {"mmd": {"features": name}})]
    ]
    assert torch.equal(terms[0]["mmd"], terms[1]["mmd"])


def test_the_gaussian_kernel_has_the_settings_of_the_section(student, monkeypatch):
    part = student(mmd={"kernel": "rbf", "average": "batch", "width": 7.0})
    asked = []
    monkeypatch.setattr(distillation.losses, "mmd_rbf", lambda fake, real, *rest: asked.append(rest) or fake.mean())
    part.loss("generator", part.networks, rows(part), draws(0))
    assert asked == [("batch", 7.0)]


@pytest.mark.parametrize("rank", [None, 4])
def test_a_move_leaves_the_other_network_as_it_was_and_free_to_move_again(rank, student):
    part = student(**ALL, lora_rank=rank)
    run = Trainer(part, TRAINING, 0)
    free = {name: [p.requires_grad for p in net.parameters()] for name, net in part.networks.items()}
    base = {name: [p.detach().clone() for p in net.parameters()] for name, net in part.networks.items()}
    for step in range(6):
        before = {name: weights(net) for name, net in part.networks.items()}
        run.step(run.fetch(step))
        (moved,) = part.turns(step)
        for name, net in part.networks.items():
            assert torch.equal(weights(net), before[name]) == (name != moved)
    assert not any(p.requires_grad for p in part.networks["fake"].parameters()), "it only listened in the last step"
    run.step(run.fetch(6))  # the fake score's turn again
    assert [p.requires_grad for p in part.networks["fake"].parameters()] == free["fake"]
    for name, net in part.networks.items():
        for was_free, parameter, old in zip(free[name], net.parameters(), base[name]):
            assert was_free or torch.equal(parameter, old), "the base of an adapter never moves"


def rebuilt(folder) -> DiT:
    return swd_parts.load_teacher(folder)[0].eval()


@pytest.mark.parametrize("rank", [None, 4])
def test_an_untrained_student_is_its_teacher_and_beneath_its_adapter_it_stays_so(rank, student, teacher, tmp_path):
    part = student(lora_rank=rank)
    x, t = torch.randn(3, 2, 6, 6), torch.rand(3)
    wanted = rebuilt(teacher)(x, t, LABELS[:3])
    torch.testing.assert_close(part.networks["generator"](x, t, LABELS[:3]), wanted, rtol=0, atol=1e-6)
    fit(part, TRAINING, 0, Checkpoints(tmp_path, "swd", "key"))
    with torch.no_grad():
        torch.testing.assert_close(part.teacher(x, t, LABELS[:3]), wanted, rtol=0, atol=1e-6)
        torch.testing.assert_close(
            part.teacher(x, t, LABELS[:3], block=1, stop=True),
            rebuilt(teacher)(x, t, LABELS[:3], block=1, stop=True),
        )
        assert (part.networks["generator"](x, t, LABELS[:3]) - wanted).abs().max() > 1e-4
    assert isinstance(part.teacher, Beneath) == bool(rank)


def test_an_adapter_is_small_sits_in_attention_and_mlp_and_can_be_worked_in():
    torch.manual_seed(0)
    net = adapted(awake(DiT(2, 2, classes=CLASSES, **NETWORK)), 4)
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * 4 * NETWORK["depth"] and all(".blocks." in name for name in trained)
    for name, parameter in trained.items():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    x, t = torch.randn(3, 2, 6, 6), torch.rand(3)
    before = net(x, t, LABELS[:3])
    plain = merged(net)
    assert type(plain) is DiT
    torch.testing.assert_close(plain(x, t, LABELS[:3]), before, rtol=0, atol=1e-5)


def trained(folder, part):
    """A trained part's folder, and the history of its training."""
    result = fit(part, TRAINING, 0, Checkpoints(folder / "scratch", part.name, "key"))
    part.networks[part.main].load_state_dict(result.weights)
    out = folder / "out"
    out.mkdir(parents=True)
    part.save(out)
    return out, result.history


def train(folder, part):
    return trained(folder, part)[0]


def sampler_of(folder, precision: str = "fp32", solver: Solver | None = None) -> swd_sampler.SwDSampler:
    return swd_sampler.load_sampler([folder], SwDMethod(kind="swd", solver=solver), Codec(None, 2), precision)


VARIANTS = {
    "mmd": {},
    "mmd as in the paper": {"mmd": {"penalty": "mse"}},
    "rbf": {"mmd": {"kernel": "rbf"}},
    "batch average": {"mmd": {"average": "batch"}},
    "clean features": {"mmd": {"noised": False}},
    "all": ALL,
    "released": ALL | {"mmd": {"features": "fake"}},
    "velocity": ALL | {"fake": {"updates": 1, "target": "v"}},
    "without mmd": ALL | {"mmd": {"weight": 0.0}},
    "adapters": ALL | {"lora_rank": 4},
    "full resolution": {"schedule": {"resolutions": [8] * 4, "sigmas": SIGMAS}},
    "equal compute": {"schedule": {"resolutions": [8, 8], "sigmas": [1.0, 0.7371]}},
    "constant, then a jump": {"schedule": {"resolutions": [4, 4, 4, 8], "sigmas": SIGMAS}},
    "true latents": {"upscaling": "A"},
    "noise enlarged": {"upscaling": "C"},
}


ROW = {"images", "lr", "loss", "grad_norm"}
FAKE = {f"fake_{each}" for each in ("loss", "grad_norm", "score", "discriminator", "real", "fake", "accuracy")}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_trains_all_its_weights_by_its_own_terms_and_samples(name, student, tmp_path):
    part = student(**VARIANTS[name])
    learnt = {key: p for key, p in part.networks["generator"].named_parameters() if p.requires_grad}
    start = {key: p.detach().clone() for key, p in learnt.items()}
    out, history = trained(tmp_path, part)
    assert learnt and not [key for key, p in learnt.items() if torch.equal(p, start[key])]
    terms = {key for key in ("mmd", "dmd", "gan") if getattr(part.settings, key).weight}
    assert all(set(row) == ROW | terms | (FAKE if "gan" in terms else set()) for row in history)
    images = sampler_of(out, "bf16" if name == "all" else "fp32")(SEEDS, LABELS)
    assert images.shape == (4, 2, 8, 8) and images.isfinite().all() and images.std() > 0


def test_the_sampler_calls_the_network_once_a_step_at_the_steps_resolution(student, tmp_path):
    out = train(tmp_path, student())
    sampler, seen, shown = sampler_of(out), [], []
    sampler.net.register_forward_pre_hook(lambda net, given: seen.append((given[0].shape[-1], given[1][0].item())))
    sampler(SEEDS, LABELS, lambda caption, images: shown.append((caption, images.shape[-1])))
    assert seen == [(resolution, pytest.approx(sigma)) for resolution, sigma in zip(RESOLUTIONS, SIGMAS)]
    assert shown == [(f"{resolution} px", resolution) for resolution in RESOLUTIONS]
    assert count_calls(sampler, LABELS) == {"student": 4}


def test_between_steps_the_clean_latent_is_enlarged_and_noised_anew(student, tmp_path, monkeypatch):
    """Bicubic, unlike the default of `interpolate`, and never applied to a noisy tensor."""
    sampler, made = sampler_of(train(tmp_path, student())), []
    seen = []
    monkeypatch.setattr(
        swd_sampler, "noisy", lambda low, *rest: seen.append((low, rest[0])) or distillation.noisy(low, *rest)
    )
    sampler.latents(SEEDS, sampler.conditioner(LABELS), made.append)
    assert [resolution for _, resolution in seen] == RESOLUTIONS
    assert all(torch.equal(low, z) for (low, _), z in zip(seen[1:], made))


@pytest.mark.parametrize("strategy", ["B", "C"])
def test_a_student_is_sampled_by_the_way_to_enlarge_of_its_training(strategy, student, tmp_path):
    """The input of the second step by hand: C enlarges the noise with the latent."""
    sampler, made, seen = sampler_of(train(tmp_path, student(upscaling=strategy))), [], []
    sampler.net.register_forward_pre_hook(lambda net, given: seen.append(given[0]))
    sampler.latents(SEEDS, sampler.conditioner(LABELS), made.append)
    sigma, enlarge = SIGMAS[1], nn.Upsample((6, 6), mode="bicubic")
    side = {"B": 6, "C": 4}[strategy]
    noise = sigma * noise_of_seeds(SEEDS, "step-1", (2, side, side))
    clean = (1 - sigma) * made[0]
    torch.testing.assert_close(seen[1], enlarge(clean) + noise if strategy == "B" else enlarge(clean + noise))


def test_a_student_brings_its_schedule_with_its_weights(student, tmp_path):
    out = train(tmp_path, student(schedule={"resolutions": [4, 8], "sigmas": [1.0, 0.5]}))
    assert json.loads((out / "config.json").read_text())["schedule"] == {"resolutions": [4, 8], "sigmas": [1.0, 0.5]}
    assert sampler_of(out).steps == [(4, 1.0), (8, 0.5)]


def test_a_student_with_adapters_is_saved_as_a_plain_network(student, tmp_path):
    out = train(tmp_path, student(lora_rank=4))
    plain = DiT(2, 2, classes=CLASSES, **NETWORK)
    plain.load_state_dict(load_file(out / "model.safetensors"))


@pytest.mark.parametrize("which", ["teacher", "student"])
def test_image_k_depends_on_seed_k_alone(which, student, teacher, tmp_path):
    sampler = sampler_of(teacher, solver=SOLVER) if which == "teacher" else sampler_of(train(tmp_path, student()))
    whole, two = sampler(SEEDS, LABELS), sampler(SEEDS[1:3], LABELS[1:3])
    torch.testing.assert_close(whole[1:3], two, rtol=0, atol=1e-5)
    assert (whole[0] - whole[3]).abs().max() > 1e-3


def test_the_teacher_is_sampled_at_the_full_resolution_with_guidance(teacher):
    sampler = sampler_of(teacher, solver=SOLVER)
    assert sampler(SEEDS, LABELS).shape == (4, 2, 8, 8)
    assert count_calls(sampler, LABELS) == {"teacher": 2 * SOLVER.steps}
    assert sampler_of(teacher).solver == Solver()


def one_scale(folder, **changes) -> None:
    """A DiT that MSF trained as its one scale, in its own normalisation."""
    target, latent = {"shift": [0.5, 0.5], "scale": [2.0, 2.0]}, {"shift": [0.1, 0.2], "scale": [2.0, 3.0]}
    about = {"index": 0, "resolutions": [8], "target": target, "latent": latent, "classes": CLASSES, "network": NETWORK}
    config = ScaleConfig.model_validate(about | changes)
    folder.mkdir()
    models.save(folder, awake(config.build()).state_dict(), config)


def test_a_dit_of_one_scale_teaches_in_its_own_normalisation(pyramid, tmp_path):
    one_scale(tmp_path / "dit")
    part = swd_parts.build_student("swd", settings_of(), pyramid, tmp_path / "dit")
    z = rows(part)["z8"]
    torch.testing.assert_close(part.renormalise(z), (z - 0.5) / 2)
    latent = z * torch.tensor([2.0, 3.0]).view(1, 2, 1, 1) + torch.tensor([0.1, 0.2]).view(1, 2, 1, 1)
    torch.testing.assert_close(part.config.latent.undo(part.renormalise(z)), latent)
    assert part.loss("generator", part.networks, rows(part), draws(0))[0].isfinite()
    assert sampler_of(tmp_path / "dit", solver=SOLVER)(SEEDS, LABELS).shape == (4, 2, 8, 8)


@pytest.mark.parametrize("name", ["a student", "the first of two scales", "another method's"])
def test_a_model_of_another_class_is_no_teacher(name, student, pyramid, tmp_path):
    if name == "a student":
        out = train(tmp_path, student())
    else:
        one_scale(out := tmp_path / "dit", resolutions=[6, 8] if name == "the first of two scales" else [8])
    if name == "another method's":
        about = json.loads((out / "config.json").read_text())
        (out / "config.json").write_text(json.dumps(about | {"kind": "ssd", "role": "teacher"}))
    with pytest.raises(ValueError, match="no teacher; allowed: a DiT of one scale"):
        swd_parts.build_student("swd", settings_of(), pyramid, out)


@pytest.mark.parametrize("variant", ["mmd", "all", "adapters"])
def test_training_that_was_cut_short_ends_in_the_same_weights(variant, student, tmp_path):
    training = replace(TRAINING, images=80)  # cut between two turns of the fake score

    def run(scratch: str, stop: int | None = None):
        def on_step(seen: int) -> None:
            if seen == stop:
                raise InterruptedError

        part = student(**VARIANTS[variant])
        checkpoints = Checkpoints(tmp_path / scratch, "swd", "key")
        return part, fit(part, training, 0, checkpoints, on_step=on_step, checkpoint_seconds=0)

    whole, expected = run("whole")
    with pytest.raises(InterruptedError):
        run("cut", stop=40)
    part, found = run("cut")
    torch.testing.assert_close(found.weights, expected.weights, rtol=0, atol=0)
    assert found.history == expected.history
    for name, net in whole.networks.items():
        torch.testing.assert_close(part.networks[name].state_dict(), net.state_dict(), rtol=0, atol=0)


def test_the_tokens_after_a_block_are_those_that_the_network_goes_on_from():
    torch.manual_seed(0)
    net = awake(DiT(2, 2, classes=CLASSES, **NETWORK))
    x, t = torch.randn(3, 2, 6, 6), torch.rand(3)
    seen = {}
    for index, block in enumerate(net.blocks):
        block.register_forward_hook(lambda _, __, out, index=index: seen.__setitem__(index, out))
    output = net(x, t, LABELS[:3])
    for index in range(2):
        again, tokens = net(x, t, LABELS[:3], block=index)
        assert torch.equal(again, output) and torch.equal(tokens, seen[index]) and tokens.shape == (3, 9, 32)
        later = [block.register_forward_hook(lambda *_: pytest.fail("it ran on")) for block in net.blocks[index + 1 :]]
        assert torch.equal(net(x, t, LABELS[:3], block=index, stop=True), tokens)
        for hook in later:
            hook.remove()
