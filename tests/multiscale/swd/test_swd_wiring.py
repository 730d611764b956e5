"""Each term of SwD as a part wires it, against the paper's equations on what the networks were shown.

The networks are functions here: they are asked at the states that the part showed them, and everything above them
(noising, clean predictions, guidance, losses, weights, where gradients flow) is written out from the paper.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from multiscale.condition import Classes, Prompts
from multiscale.core.storage import Table
from multiscale.core.streams import Draws
from multiscale.flow import Solver
from multiscale.methods.swd import parts as swd_parts
from multiscale.methods.swd import sampler as swd_sampler
from multiscale.methods.swd.settings import Student, Teacher
from multiscale.methods.swd.student import FakeScore, StudentPart, TokenHead

CLASSES, COUNT, GUIDANCE = 3, 8, 4.5
NETWORK = {"depth": 2, "width": 16, "heads": 2, "patch": 2}
RESOLUTIONS, SIGMAS = [4, 6, 8], [1.0, 0.8, 0.5]
TERMS = {
    "mmd": {"weight": 0.7},
    "dmd": {"weight": 1.3, "guidance_scale": GUIDANCE},
    "gan": {"weight": 0.2, "discriminator": 0.3},
}
ALL = TERMS | {"fake": {"updates": 1}}


def levels(low: int, high: int) -> np.ndarray:
    """Noise levels of the 28-step grid with shift 3, whose end point is shifted once before the grid is."""

    def shift(u):
        return 3 * u / (1 + 2 * u)

    return shift(np.linspace(1, shift(0.001), 28))[low:high]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A pyramid of images that are their own latents, and a teacher of it."""
    pyramid, teacher = tmp_path_factory.mktemp("pyramid"), tmp_path_factory.mktemp("teacher")
    random = torch.Generator().manual_seed(0)
    full = torch.randn(COUNT, 2, 8, 8, generator=random) + 2 * torch.randn(COUNT, 2, 1, 1, generator=random)
    tensors = {
        f"z{resolution}": F.interpolate(full, size=(resolution, resolution), mode="area") for resolution in RESOLUTIONS
    }
    save_file(tensors | {"label": torch.arange(COUNT) % CLASSES}, pyramid / "targets.safetensors")
    statistics = {"classes": CLASSES, "latent": {"shift": [0.1, 0.2], "scale": [2.0, 3.0]}}
    statistics["grids"] = {str(resolution): resolution for resolution in RESOLUTIONS}
    (pyramid / "statistics.json").write_text(json.dumps(statistics))
    swd_parts.build_part("teacher", teacher_settings(), pyramid).save(teacher)
    return pyramid, teacher


def teacher_settings(**changes) -> Teacher:
    about = {"method": "t", "kind": "swd", "dataset": "pyramid", "network": NETWORK, "training": {"images": 96}}
    return Teacher.model_validate(about | changes)


def student_part(folders, **changes) -> StudentPart:
    """The student with all losses on the pyramid and teacher in `folders`."""
    about = {"method": "swd", "kind": "swd", "dataset": "pyramid", "teacher": "teacher", "block": 1}
    about |= {"schedule": {"resolutions": RESOLUTIONS, "sigmas": SIGMAS}, "training": {"images": 96}}
    return swd_parts.build_student("swd", Student.model_validate(about | ALL | changes), *folders)


def scattered(net: nn.Module, seed: int) -> None:
    """Gives each network its own weights, so that no two networks, blocks, classes or images give the same output."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            norm = isinstance(net, TokenHead) and parameter.ndim == 1 and name.endswith("weight")
            wide = parameter.ndim == 2 and (name.startswith("patches") or isinstance(net, TokenHead))
            parameter.copy_(norm + (1.0 if wide else 0.2) * torch.randn(parameter.shape, generator=random))


class Shown:
    """What a network was shown: state, time and labels of each call, in order; and its tokens after block 1.

    Seen where they enter its layers, whichever of its methods they came through.
    """

    def __init__(self, net: nn.Module):
        self.states, self.times, self.labels, self.tokens = [], [], [], []

        def state(patches: Tensor) -> None:
            grid = round(patches.shape[1] ** 0.5)
            self.states.append(F.pixel_shuffle(patches.transpose(1, 2).unflatten(2, (grid, grid)), net.patch))

        self.hooks = [
            layer.register_forward_pre_hook(lambda _, given, keep=keep: keep(given[0]))
            for layer, keep in (
                (net.patches, state),
                (net.time, self.times.append),
                (net.label, self.labels.append),
            )
        ]
        self.hooks.append(net.blocks[1].register_forward_hook(lambda _, given, out: self.tokens.append(out)))

    def close(self) -> None:
        for hook in self.hooks:
            hook.remove()

    @property
    def calls(self) -> list[tuple[Tensor, Tensor, Tensor]]:
        return list(zip(self.states, self.times, self.labels, strict=True))


class Case:
    """A part with three different networks, and the inputs of each in one call of `loss`."""

    def __init__(self, folders, step: int, network: str, **changes):
        torch.manual_seed(0)
        self.part = student_part(folders, **changes)
        self.generator, self.teacher = self.part.networks["generator"], self.part.teacher
        fake = self.part.networks["fake"]
        self.fake, self.head = fake.net, fake.head
        nets = {"generator": self.generator, "teacher": self.teacher, "fake": self.fake}
        for seed, net in enumerate([*nets.values(), *([self.head] if self.head else [])]):
            scattered(net, seed)
        for net in self.part.networks.values():  # what the loop does before a network's turn
            net.requires_grad_(net is self.part.networks[network])
        self.shown = {name: Shown(net) for name, net in nets.items()}
        rows = self.part.data[torch.arange(COUNT)]
        self.labels, self.truth = rows["label"], rows[f"z{RESOLUTIONS[self.part.index(step)]}"]
        self.rows = rows
        draws = Draws(0, "swd", step, COUNT, slice(0, COUNT), torch.device("cpu"))
        self.loss, self.terms = self.part.loss(network, self.part.networks, rows, draws)
        for shown in self.shown.values():
            shown.close()

    def clean(self) -> Tensor:
        """The generator's prediction from its input."""
        ((x, sigma, labels),) = self.shown["generator"].calls
        return x - sigma.view(-1, 1, 1, 1) * self.generator(x, sigma, labels)

    def real(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The teacher's clean prediction under guidance: v_u + w (v_c - v_u)."""
        with torch.no_grad():
            given = self.teacher(x, sigma, self.labels)
            free = self.teacher(x, sigma, torch.full_like(self.labels, CLASSES))
        return x - sigma.view(-1, 1, 1, 1) * (free + GUIDANCE * (given - free))

    def tokens_of(self, net: nn.Module, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        found = []
        hook = net.blocks[1].register_forward_hook(lambda _, given, out: found.append(out))
        net(x, sigma, labels)
        hook.remove()
        return found[0]

    def logits(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        """The head: the tokens' mean, then four times LayerNorm, GELU, Linear."""
        h, layers = self.tokens_of(self.fake, x, sigma, labels).mean(1), list(self.head)
        assert [type(layer) for layer in layers] == [nn.LayerNorm, nn.GELU, nn.Linear] * 4
        for norm, linear in zip(layers[::3], layers[2::3]):
            centred = h - h.mean(1, keepdim=True)
            h = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias
            h = 0.5 * h * (1 + torch.erf(h / 2**0.5))
            h = h @ linear.weight.T + linear.bias
        return h


def noise_in(x: Tensor, clean: Tensor, sigma: Tensor) -> Tensor:
    """The noise of a state (1 - sigma) clean + sigma noise."""
    s = sigma.view(-1, 1, 1, 1)
    return (x - (1 - s) * clean) / s


def is_unit_noise(noise: Tensor) -> bool:
    """Of mean 0 and variance 1, and of its own in every image."""
    flat = noise.detach().flatten(1)
    alike = torch.corrcoef(flat).fill_diagonal_(0).abs().max()
    return abs(flat.mean()) < 0.3 and abs(flat.var() - 1) < 0.4 and alike < 0.8


def belongs(sigma: Tensor, allowed: np.ndarray) -> bool:
    return bool((np.abs(sigma.numpy()[:, None] - allowed).min(1) < 1e-6).all())


def same_gradients(loss: Tensor, wanted: Tensor, net: nn.Module) -> None:
    def gradient(value: Tensor) -> Tensor:
        free = [p for p in net.parameters() if p.requires_grad]
        found = torch.autograd.grad(value, free, materialize_grads=True, retain_graph=True)
        return torch.cat([g.flatten() for g in found])

    by_hand = gradient(wanted)
    assert (gradient(loss) - by_hand).norm() < 1e-4 * by_hand.norm()


def softplus(x: Tensor) -> Tensor:
    return torch.log1p(torch.exp(-x.abs())) + x.clamp(min=0)


STEPS = {k: 2 * k + 1 for k in range(3)}  # the generator's turn for each k, after one of the fake score


def dmd_by_hand(case: Case) -> Tensor:
    made = case.clean()
    ((x, sigma, labels),) = case.shown["fake"].calls
    assert torch.equal(labels, case.labels) and belongs(sigma, levels(12, 28))
    assert is_unit_noise(noise_in(x, made, sigma))
    with torch.no_grad():
        fake = x - sigma.view(-1, 1, 1, 1) * case.fake(x, sigma, labels)
        real = case.real(x, sigma)
        g = (fake - real) / (made - real).abs().mean((1, 2, 3), keepdim=True)
    return 0.5 * (made - (made - g).detach()).square().mean()


def gan_by_hand(case: Case) -> Tensor:
    """On the same state as the score's term, with the same noise; the image carries the gradient."""
    made = case.clean()
    ((x, sigma, labels),) = case.shown["fake"].calls
    s, noise = sigma.view(-1, 1, 1, 1), noise_in(x, made, sigma).detach()
    return softplus(-case.logits((1 - s) * made + s * noise, sigma, labels)).mean()


def mmd_by_hand(case: Case, name: str = "teacher") -> Tensor:
    """Truth and prediction get one noise, one level, one class; the prediction's features alone have a gradient."""
    made, net = case.clean(), {"teacher": case.teacher, "fake": case.fake}[name]
    calls = [call for call in case.shown[name].calls if len(call[0]) == COUNT]  # not those under guidance
    ((real, sigma, labels),) = [call for call in calls if is_unit_noise(noise_in(call[0], case.truth, call[1]))]
    s, noise = sigma.view(-1, 1, 1, 1), noise_in(real, case.truth, sigma)
    fake = (1 - s) * made + s * noise
    assert any(torch.equal(call[1], sigma) and torch.allclose(call[0], fake, atol=1e-4) for call in calls)
    assert torch.equal(labels, case.labels) and belongs(sigma, levels(18, 28))
    with torch.no_grad():
        wanted = case.tokens_of(net, real, sigma, labels).mean(1)
    m = case.tokens_of(net, fake, sigma, labels).mean(1) - wanted
    return ((m**2 + 1e-3**2).sqrt() - 1e-3).mean()


BY_HAND: dict[str, Callable[[Case], Tensor]] = {"dmd": dmd_by_hand, "gan": gan_by_hand, "mmd": mmd_by_hand}
NOTHING = {"weight": 0.0}
ALONE = {  # what leaves one term over
    "dmd": {"mmd": NOTHING, "gan": NOTHING},
    "gan": {"mmd": NOTHING, "dmd": NOTHING},
    "mmd": {"dmd": NOTHING, "gan": {"weight": 1e-9}},  # with a fake score, which could be mistaken for the teacher
    "fake": {},
}


@pytest.mark.parametrize("k", range(3))
@pytest.mark.parametrize("name", BY_HAND)
def test_a_term_of_the_generator_alone_is_the_papers_with_its_gradient(name, k, folders):
    case = Case(folders, STEPS[k], "generator", **ALONE[name])
    wanted = BY_HAND[name](case)
    torch.testing.assert_close(case.terms[name], wanted, rtol=1e-4, atol=1e-6)
    weighted = TERMS[name]["weight"] * wanted
    torch.testing.assert_close(case.loss, weighted, rtol=1e-4, atol=1e-6)
    same_gradients(case.loss, weighted, case.generator)
    assert wanted > 1e-3


def test_the_generator_descends_on_the_weighted_sum_of_all_terms(folders):
    case = Case(folders, STEPS[2], "generator")
    wanted = sum(TERMS[name]["weight"] * by_hand(case) for name, by_hand in BY_HAND.items())
    torch.testing.assert_close(case.loss, wanted, rtol=1e-4, atol=1e-6)
    same_gradients(case.loss, wanted, case.generator)
    assert set(case.terms) == set(TERMS)


def test_the_features_may_be_those_of_the_fake_score_as_released(folders):
    case = Case(folders, STEPS[2], "generator", mmd={"weight": 0.7, "features": "fake"}, dmd=NOTHING)
    torch.testing.assert_close(case.terms["mmd"], mmd_by_hand(case, "fake"), rtol=1e-4, atol=1e-6)


def test_the_squared_penalty_is_the_papers_and_the_kernel_of_gauss_is_the_released_codes(folders):
    squared = Case(folders, STEPS[1], "generator", mmd={"weight": 1.0, "penalty": "mse"})
    rbf = Case(folders, STEPS[1], "generator", mmd={"weight": 1.0, "kernel": "rbf"})
    real, fake = (tokens for tokens in squared.shown["teacher"].tokens if len(tokens) == COUNT)
    by_hand = (fake.mean(1) - real.mean(1)).square().sum(1).mean() / NETWORK["width"]
    torch.testing.assert_close(squared.terms["mmd"], by_hand, rtol=1e-4, atol=1e-6)

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return torch.exp(-torch.cdist(a.double(), b.double()).square() / (2 * 100**2))

    real, fake = (tokens for tokens in rbf.shown["teacher"].tokens if len(tokens) == COUNT)
    T = real.shape[1]
    within = [(kernel(a, a).sum((1, 2)) - T) / (T * (T - 1)) for a in (fake, real)]
    wanted = (within[0] + within[1] - 2 * kernel(fake, real).mean((1, 2))).mean()
    torch.testing.assert_close(rbf.terms["mmd"].double(), wanted, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("target", ["x0", "v"])
@pytest.mark.parametrize("k", range(3))
def test_the_fake_score_learns_from_what_the_generator_makes_and_its_head_tells_it_from_the_truth(k, target, folders):
    case = Case(folders, 2 * k, "fake", fake={"updates": 1, "target": target})
    with torch.no_grad():
        made = case.clean()
    (fake, sigma, labels), (true, *same) = case.shown["fake"].calls
    assert torch.equal(labels, case.labels) and torch.equal(sigma, same[0]) and torch.equal(labels, same[1])
    s = sigma.view(-1, 1, 1, 1)
    noise = noise_in(fake, made, sigma)
    assert is_unit_noise(noise) and belongs(sigma, levels(0, 28))
    torch.testing.assert_close(true, (1 - s) * case.truth + s * noise, rtol=1e-3, atol=1e-3)
    velocity = case.fake(fake, sigma, labels)
    if target == "x0":
        score = (fake - s * velocity - made).square().mean()
    else:
        score = (velocity - (noise - made)).square().mean()
    judged = softplus(case.logits(fake, sigma, labels)).mean() + softplus(-case.logits(true, sigma, labels)).mean()
    near = {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(case.terms["score"], score, **near)
    torch.testing.assert_close(case.terms["discriminator"], judged, **near)
    torch.testing.assert_close(case.loss, score + 0.3 * judged, **near)
    same_gradients(case.loss, score + 0.3 * judged, case.part.networks["fake"])
    logits = [case.logits(state, sigma, labels) for state in (true, fake)]
    torch.testing.assert_close(case.terms["real"], torch.sigmoid(logits[0]).mean(), **near)
    torch.testing.assert_close(case.terms["fake"], torch.sigmoid(logits[1]).mean(), **near)
    assert (logits[0].mean() - logits[1].mean()).abs() > 0.05 and logits[0].std() > 0.05
    right = (logits[0] > 0).float().mean() / 2 + (logits[1] <= 0).float().mean() / 2
    torch.testing.assert_close(case.terms["accuracy"], right)


def test_the_fake_scores_loss_asks_nothing_of_the_generator(folders):
    """Though both are free here: what is made is data of the fake score."""
    case = Case(folders, 0, "fake")
    case.generator.requires_grad_(True)
    draws = Draws(0, "swd", 0, COUNT, slice(0, COUNT), torch.device("cpu"))
    loss, _ = case.part.loss("fake", case.part.networks, case.rows, draws)
    found = torch.autograd.grad(loss, tuple(case.generator.parameters()), allow_unused=True)
    assert loss.requires_grad and all(each is None for each in found)


def test_without_a_discriminator_the_fake_score_sees_what_the_generator_makes_alone(folders):
    case = Case(folders, 0, "fake", gan=NOTHING)
    with torch.no_grad():
        made = case.clean()
    ((x, sigma, labels),) = case.shown["fake"].calls
    assert len(x) == COUNT and is_unit_noise(noise_in(x, made, sigma))
    s = sigma.view(-1, 1, 1, 1)
    wanted = (x - s * case.fake(x, sigma, labels) - made).square().mean()
    torch.testing.assert_close(case.loss, wanted, rtol=1e-4, atol=1e-6)


def test_generator_fake_score_and_teacher_have_weights_of_their_own_and_begin_alike(folders):
    torch.manual_seed(0)
    part = student_part(folders)
    nets = [part.networks["generator"], part.networks["fake"].net, part.teacher]
    places = [{p.data_ptr() for p in net.parameters()} for net in nets]
    assert not places[0] & places[1] and not places[0] & places[2] and not places[1] & places[2]
    for net in nets[:2]:
        torch.testing.assert_close(net.state_dict(), nets[2].state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("timesteps, low", [("uniform", 0.1), ("logit-normal", 0.014)])
def test_a_share_of_the_teachers_classes_is_dropped_and_its_times_are_those_of_the_settings(timesteps, low, folders):
    """Below 1/10 are a tenth of the uniform times, and Phi(-log 9) = 1.4 % of the logit-normal ones."""
    settings = teacher_settings(label_dropout=0.2, timesteps=timesteps)
    part = swd_parts.build_part("teacher", settings, folders[0])
    size = 2000
    rows = {name: value[torch.arange(size) % COUNT] for name, value in part.data[torch.arange(COUNT)].items()}
    shown = Shown(part.networks["net"])
    with torch.no_grad():
        part.loss("net", part.networks, rows, Draws(0, "t", 0, size, slice(0, size), torch.device("cpu")))
    (labels,), (times,) = shown.labels, shown.times
    assert (times < 0.1).float().mean().item() == pytest.approx(low, abs=0.02)
    dropped = labels == CLASSES
    assert dropped.float().mean().item() == pytest.approx(0.2, abs=0.03)
    assert torch.equal(labels[~dropped], rows["label"][~dropped])


@pytest.mark.parametrize(
    "name, between, network, net",
    [
        ("dmd", (12, 28), "generator", "fake"),
        ("gan", (12, 28), "generator", "fake"),
        ("mmd", (18, 28), "generator", "teacher"),
        ("fake", (0, 28), "fake", "fake"),
    ],
)
def test_every_level_of_its_range_is_drawn_for_a_term_and_no_other(name, between, network, net, folders):
    case = Case(folders, STEPS[0], "generator", **ALONE[name])
    shown = Shown({"fake": case.fake, "teacher": case.teacher}[net])
    for step in range(12):
        rows = {key: value[torch.arange(64) % COUNT] for key, value in case.rows.items()}
        draws = Draws(0, "swd", 6 * step, 64, slice(0, 64), torch.device("cpu"))  # k = 0
        with torch.no_grad():
            case.part.loss(network, case.part.networks, rows, draws)
    seen = sorted({t for times in shown.times for t in times.tolist()}, reverse=True)
    np.testing.assert_allclose(seen, levels(*between), atol=1e-6)


class OfPrompts(nn.Module):
    """A DiT that reads the class from a prompt: class % 2 from its second token, class // 2 from the pooled prompt."""

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, t: Tensor, prompt: Tensor, pooled: Tensor, block=None, stop=False):
        return self.net(x, t, prompt[:, 1].argmax(1) + 2 * pooled.argmax(1), block=block, stop=stop)


def prompts() -> Prompts:
    """Row k stands for the class CLASSES - 1 - k, the empty prompt for no class."""
    bits, classes = torch.eye(2), torch.arange(CLASSES + 1)
    prompt, pooled = torch.stack([bits[torch.zeros_like(classes)], bits[classes % 2]], 1), bits[classes // 2]
    rows = torch.arange(CLASSES).flip(0)
    return Prompts(Table({"prompt": prompt[rows].numpy(), "pooled": pooled[rows].numpy()}), (prompt[3:], pooled[3:]))


@pytest.mark.parametrize("network, step", [("generator", STEPS[1]), ("fake", 0)])
def test_a_student_of_prompts_learns_what_one_of_the_classes_that_they_tell_does(network, step, folders):
    case = Case(folders, step, network)
    fake, teacher = FakeScore(OfPrompts(case.fake), case.head, 1), OfPrompts(case.teacher)
    networks, same = {"generator": OfPrompts(case.generator), "fake": fake}, case.part
    about = same.data, networks, same.config, same.settings, teacher, same.renormalise
    part = StudentPart("swd", *about, prompts())
    rows = case.rows | {"label": CLASSES - 1 - case.labels}
    draws = Draws(0, "swd", step, COUNT, slice(0, COUNT), torch.device("cpu"))
    loss, terms = part.loss(network, networks, rows, draws)
    torch.testing.assert_close((loss, terms), (case.loss, case.terms), rtol=0, atol=0)
    same_gradients(loss, case.loss, case.part.networks[network])


def test_a_teacher_of_prompts_learns_and_generates_what_one_of_classes_does(folders):
    losses = {}
    for dropout in (0.0, 0.7):
        of_classes = swd_parts.build_part("teacher", teacher_settings(label_dropout=dropout), folders[0])
        net = of_classes.networks["net"]
        scattered(net, 0)
        about = of_classes.config, of_classes.settings, of_classes.columns
        of_prompts = swd_parts.TeacherPart("teacher", of_classes.data, OfPrompts(net), *about, prompts())
        rows = of_classes.data[torch.arange(COUNT)]
        told = rows | {"label": CLASSES - 1 - rows["label"]}
        draws = Draws(0, "t", 0, COUNT, slice(0, COUNT), torch.device("cpu"))
        losses[dropout], _ = of_classes.loss("net", of_classes.networks, rows, draws)
        found, _ = of_prompts.loss("net", of_prompts.networks, told, draws)
        torch.testing.assert_close(found, losses[dropout], rtol=0, atol=0)
        same_gradients(found, losses[dropout], net)
    assert losses[0.0] != losses[0.7]
    seeds, solver, device = list(range(COUNT)), Solver(steps=2, guidance_scale=GUIDANCE), torch.device("cpu")
    wanted = swd_sampler.solved(net, (2, 8, 8), seeds, Classes(CLASSES)(rows["label"]), solver, device)
    found = swd_sampler.solved(OfPrompts(net), (2, 8, 8), seeds, prompts()(told["label"]), solver, device)
    torch.testing.assert_close(found, wanted, rtol=0, atol=0)
