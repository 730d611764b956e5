"""SwD's parts and samplers do what its specification says: data flow, turns, adapters, resuming, controls."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from conftest import TRAINING
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from multiscale.core.streams import Draws
from multiscale.methods.msf import parts as msf_parts
from multiscale.methods.swd import parts as swd_parts
from multiscale.methods.swd import sampler as swd_sampler
from multiscale.methods.swd import student as distillation
from multiscale.methods.swd.adapter import Beneath, adapted, merged
from multiscale.methods.swd.settings import Student
from multiscale.networks.autoencoder import Codec
from multiscale.networks.dit import DiT
from multiscale.sampling import count_calls
from multiscale.training.checkpoint import Checkpoints
from multiscale.training.loop import Run, Training, fit
from stages import distill, fitting

CLASSES = 3
NETWORK = {"depth": 2, "width": 32, "heads": 2, "patch": 2}
TEACHER = {"network": NETWORK, "label_dropout": 0.1, "times": "logit-normal"}
SIDES, SIGMAS = [4, 6, 6, 8], [1.0, 0.8959, 0.7371, 0.6022]
SOLVER = {"steps": 3, "method": "euler", "cfg": 2.0}
ALL = {"mmd": {}, "dmd": {"weight": 1.0}, "gan": {"weight": 5e-3}, "fake": {"updates": 2}}
LABELS = torch.arange(4) % CLASSES
SEEDS = [1, 2, 3, 4]


def section(**changes) -> dict:
    """A student's section with every value spelled out."""
    about = {"method": "swd", "kind": "swd", "reads": "pyramid", "teacher": "teacher", "block": 0}
    about |= {"schedule": {"sides": SIDES, "sigmas": SIGMAS}, "training": {"images": 96}}
    return Student.model_validate(about | changes).model_dump()


@pytest.fixture(scope="module")
def pyramid(tmp_path_factory):
    """What the stage `decompose` leaves, of images that are their own latents."""
    folder = tmp_path_factory.mktemp("pyramid")
    images = nn.functional.interpolate(torch.randn(40, 2, 4, 4), size=(8, 8), mode="bicubic")
    tensors = {f"z{side}": nn.functional.interpolate(images, size=(side, side), mode="area") for side in (4, 6, 8)}
    save_file(tensors | {"label": torch.arange(40) % CLASSES}, folder / "targets.safetensors")
    statistics = {"shift": [0.1, 0.2], "scale": [2.0, 3.0], "grids": {"4": 4, "6": 6, "8": 8}}
    (folder / "statistics.json").write_text(json.dumps(statistics))
    return folder


def awake(net: nn.Module) -> nn.Module:
    """The network with its zero layers woken up."""
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return net


@pytest.fixture(scope="module")
def teacher(pyramid, tmp_path_factory):
    """The folder of a teacher as its stage saves it."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    part, config = swd_parts.build_part("teacher", TEACHER, pyramid, CLASSES)
    awake(part.players["net"])
    fitting.save_weights(folder, part, config)
    return folder


@pytest.fixture
def student(pyramid, teacher):
    """Builds a student of a section's changes."""

    def build(**changes):
        torch.manual_seed(0)
        return swd_parts.build_student("swd", section(**changes), pyramid, teacher)

    return build


@pytest.mark.parametrize(
    "name, sides, sigmas",
    [
        ("SD3.5-M", [256, 384, 512, 640, 768, 1024], [1.0, 0.945, 0.896, 0.79, 0.737, 0.602]),
        ("SD3.5-L", [512, 640, 768, 1024], [1.0, 0.896, 0.737, 0.602]),
        ("FLUX", [256, 512, 768, 1024], [1.0, 0.945, 0.79, 0.602]),
    ],
)
def test_a_published_schedule_can_be_asked_for_by_name_in_pixels(name, sides, sigmas):
    assert section(schedule={"preset": name})["schedule"] == {"sides": sides, "sigmas": sigmas}


def draws(step: int, batch: int = 8) -> Draws:
    return Draws(0, "swd", step, batch, slice(0, batch), torch.device("cpu"))


def rows(part, count: int = 8) -> dict[str, Tensor]:
    return part.data[torch.arange(count)]


def steps(part) -> dict[int, int]:
    """The generator's first step for each k."""
    return {part.index(step): step for step in reversed(range(24)) if part.turns(step) == ("generator",)}


def weights(net: nn.Module) -> Tensor:
    return nn.utils.parameters_to_vector(net.parameters()).detach().clone()


def test_the_teacher_sees_every_side_and_drops_some_labels(pyramid, monkeypatch):
    part, _ = swd_parts.build_part("teacher", TEACHER, pyramid, CLASSES)
    seen = []
    monkeypatch.setattr(part.players["net"], "forward", lambda x, t, c: seen.append((x.shape[-1], c)) or x)
    for step in range(30):
        part.loss("net", part.players, rows(part), draws(step))
    assert {side for side, _ in seen} == {4, 6, 8}
    assert any((labels == CLASSES).any() for _, labels in seen)


def test_k_goes_round_and_each_turn_of_the_generator_follows_its_fake_scores_on_one_k(student):
    alone, _ = student()
    assert [alone.turns(step) for step in range(5)] == [("generator",)] * 5
    assert [alone.index(step) for step in range(6)] == [0, 1, 2, 3, 0, 1]
    both, _ = student(dmd={"weight": 1.0})
    assert [both.turns(step)[0] for step in range(12)] == (["fake"] * 5 + ["generator"]) * 2
    assert [both.index(step) for step in range(30)] == [0] * 6 + [1] * 6 + [2] * 6 + [3] * 6 + [0] * 6


def inputs_of(part, monkeypatch, k: int, batch=None) -> Tensor:
    """What the generator is shown at step k."""
    seen = []
    net = part.players["generator"]
    monkeypatch.setattr(net, "forward", lambda x, t, c: seen.append((x, t)) or net.final.linear.weight.sum() * x)
    part.loss("generator", part.players, batch or rows(part), draws(steps(part)[k]))
    (x, t), *_ = seen
    assert torch.equal(t, torch.full((8,), SIGMAS[k]))
    return x


@pytest.mark.parametrize("k", range(4))
def test_the_input_is_the_enlarged_latent_of_the_step_before_noised_at_the_steps_own_side(k, student, monkeypatch):
    part, _ = student()
    x = inputs_of(part, monkeypatch, k)
    low = rows(part)[f"z{SIDES[max(0, k - 1)]}"]
    low = nn.functional.interpolate(low, size=(SIDES[k],) * 2, mode="bicubic") if low.shape[-1] != SIDES[k] else low
    noise = draws(steps(part)[k]).normal("noise", 2, SIDES[k], SIDES[k])
    torch.testing.assert_close(x, (1 - SIGMAS[k]) * low + SIGMAS[k] * noise)


def test_the_first_step_sees_noise_alone(student, monkeypatch):
    part, _ = student()
    others = {name: x.flip(0) for name, x in rows(part).items()}
    assert torch.equal(inputs_of(part, monkeypatch, 0), inputs_of(part, monkeypatch, 0, others))


def test_the_other_ways_to_enlarge_are_controls(student, monkeypatch):
    truth = rows(student()[0])["z6"]
    x = {name: inputs_of(student(upscaling=name)[0], monkeypatch, 1) for name in "ABC"}
    noise = draws(1).normal("noise", 2, 6, 6)
    torch.testing.assert_close(x["A"], (1 - SIGMAS[1]) * truth + SIGMAS[1] * noise)
    assert not torch.allclose(x["A"], x["B"]) and not torch.allclose(x["B"], x["C"])


class Spy(nn.Module):
    """Records what a teacher is asked for."""

    def __init__(self, net):
        super().__init__()
        self.net, self.asked = net, []

    def forward(self, x, t, labels, block=None, stop=False):
        asked = ("features", x, t, labels, block, torch.is_grad_enabled()) if stop else ("velocity", x, t, labels)
        self.asked.append(asked)
        return self.net(x, t, labels, block, stop)


@pytest.mark.parametrize("noised", [True, False])
def test_both_features_of_a_draw_have_the_same_noise_level_and_class(noised, student):
    part, _ = student(mmd={"noised": noised})
    part.teacher = Spy(part.teacher)
    batch, seen = rows(part), draws(3)
    loss, terms = part.loss("generator", part.players, batch, seen)
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
    clean = x - SIGMAS[3] * part.players["generator"](x, sigma, labels)
    torch.testing.assert_close(made, (1 - share) * clean + share * noise)
    assert loss == terms["mmd"]


def test_the_two_adversarial_terms_of_the_generator_share_one_noised_image(student, monkeypatch):
    part, _ = student(**ALL)
    part.teacher, asked = Spy(part.teacher), []
    fake = part.players["fake"]
    inner = fake.forward
    monkeypatch.setattr(fake, "forward", lambda x, t, c: asked.append((x, t)) or inner(x, t, c))
    _, terms = part.loss("generator", part.players, rows(part), draws(steps(part)[2]))
    assert set(terms) == {"mmd", "dmd", "gan"}
    ((x, level),) = asked
    (_, guided, both, labels) = next(entry for entry in part.teacher.asked if entry[0] == "velocity")
    assert torch.equal(guided, torch.cat([x, x])) and torch.equal(both, torch.cat([level, level]))
    assert torch.equal(labels[8:], torch.full((8,), CLASSES)), "guidance asks without a class as well"
    assert level.max() <= 0.7905 and level.min() >= 0.0089


def test_the_discriminator_works_without_the_score_matching(student):
    part, _ = student(mmd={"weight": 0.0}, gan={"weight": 1.0}, fake={"updates": 1})
    loss, terms = part.loss("generator", part.players, rows(part), draws(1))
    assert set(terms) == {"gan"} and loss == terms["gan"]
    loss.backward()
    assert any(p.grad is not None and p.grad.any() for p in part.players["generator"].parameters())


def test_the_fake_score_learns_what_the_generator_makes_and_the_head_tells_it_from_data(student):
    part, _ = student(**ALL)
    loss, terms = part.loss("fake", part.players, rows(part), draws(0))
    assert {"score", "discriminator", "accuracy"} <= set(terms)
    torch.testing.assert_close(loss, terms["score"] + 0.01 * terms["discriminator"])
    loss.backward()
    assert all(p.grad is None for p in part.players["generator"].parameters())
    assert part.players["fake"].head[2].weight.grad.any()


def test_the_published_optimiser_is_a_section_of_settings_and_does_what_they_say(student):
    """AdamW by hand, gradient norms on both sides of the limit."""
    published = {"warmup_images": 0, "decay": "constant", "beta2": 0.999, "weight_decay": 0.01, "clip": 10.0}
    published |= {"images": 1000, "batch": 8, "lr": 0.01, "ema_images": 0, "precision": "fp32"}  # a visible rate
    part, _ = student(mmd={"weight": 40.0})
    run = Run(part, Training(**section(training=published)["training"]), 0)
    net, first, second, norms = part.players["generator"], 0.0, 0.0, []
    wanted = weights(net).double()
    for step in range(4):
        batch = run.fetch(step)
        loss, _ = part.loss("generator", part.players, batch, draws(step))
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
        student(**ALL | {"mmd": {"features": name}})[0].loss("generator", part.players, rows(part), draws(step))[1]
        for name in ("teacher", "fake")
        for part in [student(**ALL | {"mmd": {"features": name}})[0]]
    ]
    assert torch.equal(terms[0]["mmd"], terms[1]["mmd"])


def test_the_gaussian_kernel_has_the_settings_of_the_section(student, monkeypatch):
    part, _ = student(mmd={"kernel": "rbf", "average": "batch", "width": 7.0})
    asked = []
    monkeypatch.setattr(distillation.losses, "mmd_rbf", lambda fake, real, *rest: asked.append(rest) or fake.mean())
    part.loss("generator", part.players, rows(part), draws(0))
    assert asked == [("batch", 7.0)]


@pytest.mark.parametrize("rank", [None, 4])
def test_a_move_leaves_the_other_network_as_it_was_and_free_to_move_again(rank, student):
    part, _ = student(**ALL, lora_rank=rank)
    run = Run(part, TRAINING, 0)
    free = {name: [p.requires_grad for p in net.parameters()] for name, net in part.players.items()}
    base = {name: [p.detach().clone() for p in net.parameters()] for name, net in part.players.items()}
    for step in range(6):
        before = {name: weights(net) for name, net in part.players.items()}
        run.step(run.fetch(step))
        (moved,) = part.turns(step)
        for name, net in part.players.items():
            assert torch.equal(weights(net), before[name]) == (name != moved)
    assert not any(p.requires_grad for p in part.players["fake"].parameters()), "it only listened in the last step"
    run.step(run.fetch(6))  # the fake score's turn again
    assert [p.requires_grad for p in part.players["fake"].parameters()] == free["fake"]
    for name, net in part.players.items():
        for was_free, parameter, old in zip(free[name], net.parameters(), base[name]):
            assert was_free or torch.equal(parameter, old), "the base of an adapter never moves"


def rebuilt(folder) -> DiT:
    return swd_parts.load_teacher(folder)[0].eval()


@pytest.mark.parametrize("rank", [None, 4])
def test_an_untrained_student_is_its_teacher_and_beneath_its_adapter_it_stays_so(rank, student, teacher, tmp_path):
    part, _ = student(lora_rank=rank)
    x, t = torch.randn(3, 2, 6, 6), torch.rand(3)
    wanted = rebuilt(teacher)(x, t, LABELS[:3])
    torch.testing.assert_close(part.players["generator"](x, t, LABELS[:3]), wanted, rtol=0, atol=1e-6)
    fit(part, TRAINING, 0, Checkpoints(tmp_path, "swd", "key"))
    with torch.no_grad():
        torch.testing.assert_close(part.teacher(x, t, LABELS[:3]), wanted, rtol=0, atol=1e-6)
        torch.testing.assert_close(
            part.teacher(x, t, LABELS[:3], 1, stop=True), rebuilt(teacher)(x, t, LABELS[:3], 1, stop=True)
        )
        assert (part.players["generator"](x, t, LABELS[:3]) - wanted).abs().max() > 1e-4
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


def train(folder, build, save=distill.save):
    """A trained part's folder."""
    part, config = build
    result = fit(part, TRAINING, 0, Checkpoints(folder / "scratch", part.name, "key"))
    part.players[part.main].load_state_dict(result.weights)
    out = folder / "out"
    out.mkdir(parents=True)
    save(out, part, config, folder)  # latents that are pixels: no autoencoder travels beside them
    return out


def sampler_of(folder, precision: str = "fp32", **settings) -> swd_sampler.LatentSampler:
    return swd_sampler.load_sampler([folder], {"solver": None} | settings, Codec(None, 2), precision)


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
    "full side": {"schedule": {"sides": [8] * 4, "sigmas": SIGMAS}},
    "equal compute": {"schedule": {"sides": [8, 8], "sigmas": [1.0, 0.7371]}},
    "constant, then a jump": {"schedule": {"sides": [4, 4, 4, 8], "sigmas": SIGMAS}},
    "true latents": {"upscaling": "A"},
    "noise enlarged": {"upscaling": "C"},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_trains_and_samples(name, student, tmp_path):
    out = train(tmp_path, student(**VARIANTS[name]))
    images = sampler_of(out, "bf16" if name == "all" else "fp32")(SEEDS, LABELS)
    assert images.shape == (4, 2, 8, 8) and images.isfinite().all() and images.std() > 0


def test_the_sampler_calls_the_network_once_a_step_at_the_steps_side(student, tmp_path):
    out = train(tmp_path, student())
    sampler, seen, shown = sampler_of(out), [], []
    sampler.net.register_forward_pre_hook(lambda net, given: seen.append((given[0].shape[-1], given[1][0].item())))
    sampler(SEEDS, LABELS, lambda caption, images: shown.append((caption, images.shape[-1])))
    assert seen == [(side, pytest.approx(sigma)) for side, sigma in zip(SIDES, SIGMAS)]
    assert shown == [(f"{side} px", side) for side in SIDES]
    assert count_calls(sampler, LABELS) == {"student": 4}


def test_between_steps_the_clean_latent_is_enlarged_and_noised_anew(student, tmp_path, monkeypatch):
    """Bicubic, not the default of `interpolate`; never a noisy tensor."""
    sampler, made = sampler_of(train(tmp_path, student())), []
    seen = []
    monkeypatch.setattr(
        swd_sampler, "noisy", lambda low, *rest: seen.append((low, rest[0])) or distillation.noisy(low, *rest)
    )
    sampler.latents(SEEDS, LABELS, made.append)
    assert [side for _, side in seen] == SIDES[1:]
    assert all(torch.equal(low, z) for (low, _), z in zip(seen, made))


def test_a_student_brings_its_schedule_with_its_weights(student, tmp_path):
    out = train(tmp_path, student(schedule={"sides": [4, 8], "sigmas": [1.0, 0.5]}))
    assert json.loads((out / "config.json").read_text())["schedule"] == {"sides": [4, 8], "sigmas": [1.0, 0.5]}
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


def test_the_teacher_is_sampled_at_the_full_side_with_guidance(teacher):
    sampler = sampler_of(teacher, solver=SOLVER)
    assert sampler(SEEDS, LABELS).shape == (4, 2, 8, 8)
    assert count_calls(sampler, LABELS) == {"teacher": 2 * SOLVER["steps"]}


def sampler_of_teacher(folder) -> swd_sampler.LatentSampler:
    return swd_sampler.TeacherSampler(*swd_parts.load_teacher(folder), Codec(None, 2), SOLVER, "fp32")


def one_scale(folder) -> None:
    """A DiT that MSF trained as its one scale, in its own normalisation."""
    config = {"index": 0, "sides": [8], "mean": [0.5, 0.5], "std": [2.0, 2.0], "classes": CLASSES}
    config |= {"latent_shift": [0.1, 0.2], "latent_scale": [2.0, 3.0], "network": NETWORK}
    net = awake(msf_parts.build_network(config))
    folder.mkdir()
    save_file(net.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


def test_a_dit_of_one_scale_teaches_in_its_own_normalisation(pyramid, tmp_path):
    one_scale(tmp_path / "dit")
    part, config = swd_parts.build_student("swd", section(), pyramid, tmp_path / "dit")
    z = rows(part)["z8"]
    torch.testing.assert_close(part.bring(z), (z - 0.5) / 2)
    image = z * torch.tensor([2.0, 3.0]).view(1, 2, 1, 1) + torch.tensor([0.1, 0.2]).view(1, 2, 1, 1)
    undone = part.bring(z) * torch.tensor(config["latent_scale"]).view(1, 2, 1, 1)
    torch.testing.assert_close(undone + torch.tensor(config["latent_shift"]).view(1, 2, 1, 1), image)
    assert part.loss("generator", part.players, rows(part), draws(0))[0].isfinite()
    assert sampler_of_teacher(tmp_path / "dit")(SEEDS, LABELS).shape == (4, 2, 8, 8)


def test_a_model_of_another_class_is_no_teacher(student, pyramid, tmp_path):
    out = train(tmp_path, student())
    with pytest.raises(ValueError, match="no teacher; allowed: a DiT of one scale"):
        swd_parts.build_student("swd", section(), pyramid, out)


@pytest.mark.parametrize("variant", ["mmd", "all", "adapters"])
def test_training_that_was_cut_short_ends_in_the_same_weights(variant, student, tmp_path):
    training = replace(TRAINING, images=80)  # cut between two turns of the fake score

    def run(scratch: str, stop: int | None = None):
        def on_step(seen: int) -> None:
            if seen == stop:
                raise InterruptedError

        part, _ = student(**VARIANTS[variant])
        return part, fit(part, training, 0, Checkpoints(tmp_path / scratch, "swd", "key"), on_step=on_step)

    whole, expected = run("whole")
    with pytest.raises(InterruptedError):
        run("cut", stop=40)
    part, found = run("cut")
    torch.testing.assert_close(found.weights, expected.weights, rtol=0, atol=0)
    assert found.history == expected.history
    for name, net in whole.players.items():
        torch.testing.assert_close(part.players[name].state_dict(), net.state_dict(), rtol=0, atol=0)


def test_the_tokens_after_a_block_are_those_that_the_network_goes_on_from():
    torch.manual_seed(0)
    net = awake(DiT(2, 2, classes=CLASSES, **NETWORK))
    x, t = torch.randn(3, 2, 6, 6), torch.rand(3)
    seen = {}
    for index, block in enumerate(net.blocks):
        block.register_forward_hook(lambda _, __, out, index=index: seen.__setitem__(index, out))
    output = net(x, t, LABELS[:3])
    for index in range(2):
        again, tokens = net(x, t, LABELS[:3], index)
        assert torch.equal(again, output) and torch.equal(tokens, seen[index]) and tokens.shape == (3, 9, 32)
        later = [block.register_forward_hook(lambda *_: pytest.fail("it ran on")) for block in net.blocks[index + 1 :]]
        assert torch.equal(net(x, t, LABELS[:3], index, stop=True), tokens)
        for hook in later:
            hook.remove()
