"""WMGM trains and samples as specified, and without details is SGM."""

from __future__ import annotations

import json
import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from conftest import TRAINING, replace
from pydantic import TypeAdapter
from safetensors.torch import save_file
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from multiscale import adversarial
from multiscale.core.models import ForeignModel
from multiscale.core.settings import Bad
from multiscale.core.storage import Table
from multiscale.core.streams import Draws, generator, noise_of_seeds
from multiscale.methods.ssd.settings import Pixels
from multiscale.methods.wmgm import sampler as wmgm_sampler
from multiscale.methods.wmgm.attention_unet import DISCRIMINATORS, GENERATORS, AttentionUNet, Discriminator
from multiscale.methods.wmgm.bands import coarse, decompose_images, detail, statistics, transform_of
from multiscale.methods.wmgm.parts import build_part
from multiscale.methods.wmgm.score import ScoreSolver
from multiscale.methods.wmgm.settings import PART, Wavelet, WMGMMethod, check_method
from multiscale.networks.unet import UNetNetwork
from multiscale.sampling import count_calls
from multiscale.training.checkpoint import Checkpoints
from multiscale.training.loop import Trainer, fit
from multiscale.training.prepare import check

CLASSES = 3
NETWORK = UNetNetwork(width=8, multipliers=[1, 2], blocks=1, attention=[8], heads=2, groups=4)


def settings_of(role: str, **fields):
    """The settings of a part."""
    about = {"method": "wmgm", "kind": "wmgm", "dataset": "bands", "role": role, "training": TRAINING}
    return TypeAdapter(PART).validate_python(about | fields)


COARSE = settings_of("coarse", network=NETWORK)
ADVERSARY = {"width": 4, "blocks": 2, "norm": "group", "dropout": 0.0}
GAN = settings_of(
    "details",
    generator={"widths": [8, 16], "norm": "group", "head": "linear"},
    discriminator=ADVERSARY,
    loss={"preset": "stabilised"},
)
OFFICIAL = settings_of(
    "details",
    standardised=False,
    generator={"widths": [8, 16], "norm": "batch", "head": "tanh"},
    discriminator=ADVERSARY | {"norm": "batch", "dropout": 0.5, "conditional": False, "lr_factor": 0.1},
    loss={"preset": "official"},
)
REGRESSION = settings_of("details", generator=GAN.generator, loss={"preset": "regression"})
DIFFUSION = settings_of("score-details", conditional=False, label_dropout=0.0, network=replace(NETWORK, attention=[]))
SOLVER = ScoreSolver(name="euler-maruyama", steps=4)
DETAIL_SOLVER = ScoreSolver(name="dpm-solver++", steps=3)
METHOD = WMGMMethod(kind="wmgm", solver=SOLVER, detail_solver=DETAIL_SOLVER)
LABELS = torch.arange(4) % CLASSES
SEEDS = [1, 2, 3, 4]


def pictures(count: int = 64, resolution: int = 16) -> Tensor:
    random = torch.Generator().manual_seed(0)
    smooth = nn.functional.interpolate(
        torch.rand(count, 3, 4, 4, generator=random), size=(resolution, resolution), mode="bilinear"
    )
    return (255 * smooth).round().to(torch.uint8)


def decompose(folder, images: Tensor, wavelet: str = "haar", levels: int = 2):
    """Writes what the stage `decompose` does."""
    folder.mkdir(exist_ok=True)
    labels = torch.arange(len(images)) % CLASSES
    save_file({**decompose_images(images, wavelet, levels), "label": labels}, folder / "targets.safetensors")
    names = ["ll", *(detail(j) for j in range(1, levels + 1))]
    found = statistics(Table.open(folder / "targets.safetensors", *names), wavelet, levels)
    (folder / "statistics.json").write_text(json.dumps({"classes": CLASSES, **found}))
    return folder


@pytest.fixture
def bands(tmp_path):
    """A folder of 64 images of 16x16 pixels in two levels of Haar bands."""
    return decompose(tmp_path / "haar", pictures())


@pytest.fixture
def pixels(tmp_path):
    """A folder of the same images as pixels."""
    folder = tmp_path / "pixels"
    folder.mkdir()
    save_file({"pixels": pictures(), "label": torch.arange(64) % CLASSES}, folder / "targets.safetensors")
    (folder / "statistics.json").write_text(json.dumps({"classes": CLASSES}))
    return folder


def build(folder, settings, name="part"):
    """A part, with the zero layers of its networks randomised."""
    torch.manual_seed(0)
    part = build_part(name, settings, folder)
    for net in part.networks.values():
        for parameter in net.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.1)
    return part


def sampler_of(out, parts: list[tuple], method: WMGMMethod = METHOD):
    """A sampler, from the folders of models; parts: (folder of the decomposition, settings) of each."""
    folders = []
    for k, (folder, settings) in enumerate(parts):
        folders.append(out / f"model-{k}")
        folders[-1].mkdir(exist_ok=True)
        build(folder, settings).save(folders[-1])
    return wmgm_sampler.load_sampler(folders, method, None, "fp32")


def draws(step: int = 0, batch: int = 8) -> Draws:
    return Draws(0, "part", step, batch, slice(0, batch), torch.device("cpu"))


def rows(part, count: int = 8) -> dict[str, Tensor]:
    return part.data[torch.arange(count)]


# ---- Networks and losses


def test_the_faithful_networks_have_the_released_numbers_of_parameters():
    with torch.device("meta"):
        unet, discriminator = AttentionUNet(6, 9, *GENERATORS["WMGM"]), Discriminator(3, *DISCRIMINATORS["WMGM"])
        assert unet(torch.empty(2, 6, 32, 32)).shape == (2, 9, 32, 32)
        assert discriminator(torch.empty(2, 3, 64, 64)).shape == (2,)
    assert sum(p.numel() for p in unet.parameters()) == 36_471_600
    assert sum(p.numel() for p in discriminator.parameters()) == 42_632_257


@pytest.mark.parametrize("name", ["small-64", "small-32"])
def test_the_small_networks_treat_every_image_alone(name):
    torch.manual_seed(0)
    for net in (AttentionUNet(6, 9, *GENERATORS[name]), Discriminator(6, *DISCRIMINATORS[name])):
        x = torch.randn(3, 6, 16, 16)
        assert torch.allclose(net(x)[1:], net(x[1:]), atol=1e-5)


def test_tanh_bounds_the_generator_and_a_linear_head_does_not():
    torch.manual_seed(0)
    x = 100 * torch.randn(2, 6, 16, 16)
    bounded, free = (AttentionUNet(6, 9, [8, 16], "group", head) for head in ("tanh", "linear"))
    free.load_state_dict(bounded.state_dict())
    nn.init.normal_(free.head.weight, std=10)
    assert bounded(x).abs().max() <= 1 < free(x).abs().max()


def test_a_resolution_that_a_generator_cannot_divide_is_refused():
    with pytest.raises(
        ValueError, match="a generator of 3 widths cannot divide a resolution of 6; allowed: multiples of 4"
    ):
        AttentionUNet(6, 9, [8, 16, 32], "group", "linear")(torch.zeros(1, 6, 6, 6))


def test_dropout_is_decided_by_the_numbers_that_are_given():
    torch.manual_seed(0)
    net = Discriminator(3, 4, 2, "group", 0.5)
    x, uniform = torch.randn(64, 3, 8, 8), torch.rand(64, net.features)
    assert torch.equal(net(x, uniform), net(x, uniform))
    assert not torch.equal(net(x, uniform), net(x, 1 - uniform))
    assert torch.equal(net(x), net.eval()(x))
    many = torch.stack([net(x, torch.rand(64, net.features)) for _ in range(400)]).mean(0)
    assert (many - net(x)).abs().mean() < 0.1 * (net(x, uniform) - net(x)).abs().mean()


def reference_ssim(x: Tensor, y: Tensor) -> float:
    def blur(z):  # radius 5
        return gaussian_filter(z.double().numpy(), 1.5, mode="constant", truncate=3.5, axes=(2, 3))

    mx, my = blur(x), blur(y)
    vx, vy, vxy = blur(x * x) - mx**2, blur(y * y) - my**2, blur(x * y) - mx * my
    return float(((2 * mx * my + 1e-4) * (2 * vxy + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))).mean())


@pytest.mark.parametrize("resolution", [8, 32])
def test_ssim_is_that_of_an_independent_implementation(resolution):
    random = torch.Generator().manual_seed(0)
    x = torch.rand(4, 3, resolution, resolution, generator=random)
    y = (x + 0.2 * torch.randn(x.shape, generator=random)).clamp(0, 1)
    assert adversarial.ssim(x, x).item() == pytest.approx(1, abs=1e-5)
    assert adversarial.ssim(x, y).item() == pytest.approx(reference_ssim(x, y), abs=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert adversarial.ssim(x, y).item() == pytest.approx(reference_ssim(x, y), abs=1e-5)


def test_the_gradient_penalty_is_half_the_squared_slope():
    images = torch.randn(5, 2, 4, 4, requires_grad=True)
    slope = torch.randn(2, 4, 4, requires_grad=True)
    penalty = adversarial.gradient_penalty((images * slope).sum((1, 2, 3)), images)
    assert penalty.item() == pytest.approx(0.5 * slope.square().sum().item(), rel=1e-5)
    penalty.backward()
    assert torch.allclose(slope.grad, slope, rtol=1e-4)


def test_the_official_loss_is_that_of_the_released_code(bands):
    part = build(bands, OFFICIAL)
    net, discriminator = part.networks["generator"], part.networks["discriminator"]
    for step in range(6):
        batch, given = rows(part), draws(step)
        level = 1  # the first pass over the data
        low, real = coarse(batch, transform_of("haar"), 2, level)[level], batch[detail(level)]
        noise, uniform = given.normal("noise-0", *low.shape[1:]), given.uniform("dropout/generator", 8)
        fake = transform_of("haar").merge(low, net(torch.cat([low, noise], 1)))
        truth = transform_of("haar").merge(low, real)
        expected = (
            -0.1 * torch.sigmoid(discriminator(fake, uniform)).mean()
            + 20 * (fake - truth).square().mean()
            + 0.5 * (1 - adversarial.ssim((fake + 1) / 2, (truth + 1) / 2))
        )
        loss, terms = part.loss("generator", part.networks, batch, given)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        assert set(terms) == {"mse", "ssim", "adversarial"}
        real_logit = discriminator(truth, given.uniform("dropout/real", 8))
        fake_logit = discriminator(fake, given.uniform("dropout/fake", 8))
        expected = 0.5 * (torch.sigmoid(fake_logit).mean() - torch.sigmoid(real_logit).mean())
        loss, terms = part.loss("discriminator", part.networks, batch, given)
        assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
        assert terms["real"].item() == pytest.approx(torch.sigmoid(real_logit).mean().item(), rel=1e-4)
        assert terms["fake"].item() == pytest.approx(torch.sigmoid(fake_logit).mean().item(), rel=1e-4)
    assert [part.turns(step) for step in range(4)] == [("generator",)] * 3 + [("generator", "discriminator")]
    assert part.rates == {"discriminator": 0.1}


def test_the_stabilised_loss_is_logistic_with_a_lazy_gradient_penalty_on_standardised_bands(bands):
    part = build(bands, GAN)
    found = json.loads((bands / "statistics.json").read_text())
    net = part.networks["discriminator"]
    for step in (0, 1, 16):
        batch, given = rows(part), draws(step)
        level = given.choice("level", 2) + 1
        low, real = coarse(batch, transform_of("haar"), 2, level)[level], batch[detail(level)]

        def standard(x, j):
            entry = found["coarse"][j]
            mean, std = (torch.tensor(entry[key]).view(1, -1, 1, 1) for key in ("mean", "std"))
            return (x - mean) / std

        std = torch.tensor(found["bands"][detail(level)]["std"]).view(1, -1, 1, 1)
        condition = standard(low, level)
        made = [
            part.networks["generator"](torch.cat([condition, given.normal(f"noise-{k}", *low.shape[1:])], 1))
            for k in range(2)
        ]
        merge = transform_of("haar").merge
        shown = [standard(merge(low, d), level - 1) for d in (real, made[0] * std)]
        large = nn.functional.interpolate(condition, scale_factor=2.0, mode="bilinear")
        seen = [torch.cat([x, large], 1).detach().requires_grad_() for x in shown]
        logits = [net(x) for x in seen]
        loss, terms = part.loss("generator", part.networks, batch, given)
        mse = ((made[0] - real / std) * (made[1] - real / std)).mean()
        expected = 5 * mse + 0.4 * nn.functional.softplus(-logits[1]).mean()
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
        expected = nn.functional.softplus(logits[1]).mean() + nn.functional.softplus(-logits[0]).mean()
        if step % 16 == 0:
            (gradient,) = torch.autograd.grad(logits[0].sum(), seen[0])
            of_image = gradient[:, :3]  # the other three channels are the condition
            expected = expected + 16 * 0.5 * of_image.square().sum((1, 2, 3)).mean()
        loss, terms = part.loss("discriminator", part.networks, batch, given)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
        assert terms["spread"].item() == pytest.approx((made[0] - made[1]).square().mean().item() / 2, rel=1e-4)
        assert terms["residual"].item() == pytest.approx(mse.item(), rel=1e-4)


def test_the_lazy_penalty_comes_round_in_updates_of_the_discriminator(bands):
    """With every second step its turn, and a penalty every second turn: at steps 1, 5, 9, ..."""
    part = build(bands, replace(GAN, loss=replace(GAN.loss, discriminator_every=2, r1_every=2)))
    assert [step for step in range(8) if "discriminator" in part.turns(step)] == [1, 3, 5, 7]
    terms = {step: part.loss("discriminator", part.networks, rows(part), draws(step))[1] for step in (1, 3, 5, 7)}
    assert [step for step, each in terms.items() if each["r1"] > 0] == [1, 5]


def test_a_discriminator_with_a_penalty_is_neither_compiled_nor_sharded(bands, monkeypatch):
    """torch's compiler differentiates no gradient, and shards are freed before it is differentiated."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    run = Trainer(build(bands, GAN), replace(TRAINING, compile=True), 0)
    assert run.part.turns(0) == ("generator", "discriminator")
    run.step(run.fetch(0))  # with a penalty
    assert [bool(net._compiled_call_impl) for net in run.networks.values()] == [True, False]
    with pytest.raises(Bad, match="ddp for part"):
        check(run.part, TRAINING, sharded=True)
    check(build(bands, OFFICIAL), TRAINING, sharded=True)


def test_the_error_of_two_draws_leaves_the_spread_of_the_generator_alone():
    random = torch.Generator().manual_seed(0)
    truth = torch.randn(200000, generator=random)
    made = [0.3 + 2 * torch.randn(200000, generator=random) for _ in range(2)]
    assert ((made[0] - truth) * (made[1] - truth)).mean().item() == pytest.approx(0.3**2 + 1, rel=0.05)
    assert (made[0] - truth).square().mean().item() == pytest.approx(0.3**2 + 1 + 4, rel=0.05)


@pytest.mark.parametrize("section", [OFFICIAL, GAN])
@pytest.mark.parametrize("network", ["generator", "discriminator"])
def test_an_update_of_one_network_leaves_the_other_as_it_was(section, network, bands):
    part = build(bands, section)
    trainer = Trainer(part, TRAINING, 0)
    before = {name: {k: v.clone() for k, v in net.state_dict().items()} for name, net in part.networks.items()}
    for step in range(3):
        trainer._move(network, rows(part), draws(step))
    for name, net in part.networks.items():
        same = [torch.equal(v, before[name][k]) for k, v in net.state_dict().items()]
        assert not any(same) if name == network else all(same)
    norms = [module for net in part.networks.values() for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(norm.track_running_stats for norm in norms)


def test_the_discriminators_loss_asks_nothing_of_the_generator(bands):
    """Though both are free here: what is made is data of the discriminator."""
    part = build(bands, GAN)
    loss, _ = part.loss("discriminator", part.networks, rows(part), draws())
    of_generator, of_discriminator = (
        torch.autograd.grad(loss, tuple(part.networks[name].parameters()), allow_unused=True, retain_graph=True)
        for name in ("generator", "discriminator")
    )
    assert all(each is None for each in of_generator) and all(each is not None for each in of_discriminator)


# ---- Parts


def test_parts_see_every_level_and_the_datas_own_coarse_band(bands):
    part = build(bands, GAN)
    assert part.config.covers == [1, 2] and part.levels.details[0] != part.levels.details[1]
    images, levels = pictures()[:8] / 255, set()
    for step in range(20):
        level, low, real, condition = part.given(rows(part), draws(step))
        x = images
        for _ in range(level):
            x, wanted = transform_of("haar").split(x)
        assert (low - x).abs().max() < 1e-6 and (real - wanted).abs().max() < 1e-6
        std = torch.tensor(json.loads((bands / "statistics.json").read_text())["coarse"][level]["std"]).view(1, 3, 1, 1)
        assert torch.allclose(condition.std((0, 2, 3)) * std.flatten(), low.std((0, 2, 3)), rtol=1e-4)
        levels.add(level)
    assert levels == {1, 2}


def test_the_official_preset_alternates_the_levels_by_pass_over_the_data(bands):
    part = build(bands, OFFICIAL)  # 64 images: with batches of 24 the passes begin at images 0, 64, 128, ...
    seen = [part.given(rows(part), draws(step, 24))[0] for step in range(11)]
    assert seen == [1, 1, 1, 2, 2, 2, 1, 1, 2, 2, 2]  # step 6 begins at image 144 of the third pass


def test_noise_on_the_condition_has_its_size_and_leaves_the_bands_alone(bands):
    plain = build(bands, GAN)
    noisy = build(bands, replace(GAN, condition_noise=0.3))
    differences = []
    for step in range(30):
        a, b = plain.given(rows(plain), draws(step)), noisy.given(rows(plain), draws(step))
        assert torch.equal(a[1], b[1]) and torch.equal(a[2], b[2])
        differences.append((b[3] - a[3]).flatten())
    assert torch.cat(differences).std().item() == pytest.approx(0.3, rel=0.05)


@pytest.mark.parametrize("level", [1, 2])
def test_a_part_of_one_level_keeps_to_it_and_reads_no_finer_bands(level, bands):
    part = build(bands, replace(GAN, level=level))
    assert {part.given(rows(part), draws(step))[0] for step in range(8)} == {level}
    assert set(rows(part)) == {"ll", "label", *(detail(j) for j in range(level, 3))}
    assert part.config.covers == [level]


def test_a_level_that_is_not_there_is_refused(bands):
    with pytest.raises(ValueError, match="level 3 of a decomposition of 2; allowed: 1 to 2"):
        build(bands, replace(GAN, level=3))


ROW = {"images", "lr", "loss", "grad_norm"}
HEALTH = {f"discriminator_{each}" for each in ("loss", "grad_norm", "real", "fake", "accuracy", "spread", "residual")}
STABILISED, SQUARES = {"mse", "adversarial", "discriminator_r1", *HEALTH}, {"mse", "ssim"}
VARIANTS = {  # the part, its decomposition, and the terms of its losses
    "stabilised": (GAN, {}, STABILISED),
    "official": (OFFICIAL, {}, {"mse", "ssim", "adversarial", *HEALTH}),
    "regression": (REGRESSION, {}, SQUARES),
    "score": (DIFFUSION, {}, set()),
    "conditional score": (replace(DIFFUSION, conditional=True, label_dropout=0.1), {}, set()),
    "in pixels": (GAN, {"wavelet": "pixels"}, STABILISED),
    "regression in pixels": (REGRESSION, {"wavelet": "pixels"}, SQUARES),
    "score in pixels": (DIFFUSION, {"wavelet": "pixels"}, set()),
    "db2": (GAN, {"wavelet": "db2"}, STABILISED),
    "one level": (GAN, {"levels": 1}, STABILISED),
}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_trains_all_its_weights_by_its_own_terms_and_samples(name, precision, tmp_path):
    section, how, terms = VARIANTS[name]
    folder = decompose(tmp_path / "bands", pictures(), **how)
    part = build(folder, section)
    learnt = dict(part.networks[part.main].named_parameters())
    start = {key: p.detach().clone() for key, p in learnt.items()}
    result = fit(
        part, replace(TRAINING, images=32, log_images=16, precision=precision), 0, Checkpoints(tmp_path / "s", "p", "k")
    )
    assert not [key for key in learnt if torch.equal(result.weights[key], start[key])]
    assert set().union(*result.history) == ROW | terms
    assert all(math.isfinite(value) for row in result.history for value in row.values())
    sampler = sampler_of(tmp_path, [(folder, COARSE), (folder, section)])
    images = sampler(SEEDS, LABELS)
    assert images.shape == (4, 3, 16, 16)
    assert images.isfinite().all() and images.min() >= 0 and images.max() <= 1 and images.std() > 0.01


def test_the_history_shows_the_health_of_the_discriminator(bands, tmp_path):
    for name, section in (("stabilised", GAN), ("official", OFFICIAL)):
        part = build(bands, section)
        row = fit(part, TRAINING, 0, Checkpoints(tmp_path, name, "k")).history[-1]
        assert 0 < row["discriminator_real"] < 1 and 0 < row["discriminator_fake"] < 1
        assert 0 <= row["discriminator_accuracy"] <= 1
        assert row["discriminator_spread"] > 0 and "discriminator_residual" in row
        assert {"loss", "mse", "adversarial", "discriminator_loss", "discriminator_grad_norm"} <= set(row)
        assert ("discriminator_r1" in row) == (name == "stabilised") and ("ssim" in row) == (name == "official")


@pytest.mark.parametrize("section", [COARSE, OFFICIAL, GAN, DIFFUSION])
def test_training_that_was_cut_short_ends_in_the_same_weights(section, bands, tmp_path):
    class Cut(Exception):
        pass

    def train(scratch: str, stop: int | None = None):
        def on_step(seen: int) -> None:
            if seen == stop:
                raise Cut

        part = build(bands, section)
        checkpoints = Checkpoints(tmp_path / scratch, "part", "key")
        return fit(part, TRAINING, 0, checkpoints, on_step=on_step, checkpoint_seconds=0)

    whole = train("a")
    with pytest.raises(Cut):
        train("b", stop=40)
    torch.manual_seed(9)  # no draw may come from the global stream
    resumed = train("b")
    assert whole.weights.keys() == resumed.weights.keys()
    assert all(torch.equal(whole.weights[name], resumed.weights[name]) for name in whole.weights)
    assert whole.history == resumed.history


@pytest.mark.parametrize("whitening", ["scale", "full"])
def test_the_score_model_sees_whitened_bands(whitening, bands):
    part = build(bands, replace(COARSE, whitening=whitening))
    z = part.networks["net"].whitening(part.data[torch.arange(64)]["ll"])
    assert part.config.whitening == whitening and part.column == "ll" and part.config.resolution == 4
    if whitening == "scale":
        assert z.mean((0, 2, 3)).abs().max() < 1e-4 and (z.std((0, 2, 3)) - 1).abs().max() < 1e-2
    else:
        covariance = torch.cov(z.flatten(1).T, correction=0)
        assert (torch.linalg.eigvalsh(covariance)[-20:] > 0.9).all() and covariance.diagonal().max() < 1.001


@pytest.mark.parametrize("snr_cap", [None, 5.0])
def test_details_are_diffused_in_standard_deviations_given_their_coarse_band(snr_cap, bands):
    """By hand for a network that finds no noise: the error of the velocity, or min(SNR, cap) times the data's."""
    part = build(bands, replace(DIFFUSION, conditional=True, label_dropout=0.25, snr_cap=snr_cap))
    found, labels, levels = json.loads((bands / "statistics.json").read_text()), [], set()
    for step in range(60):
        given, calls = draws(step), []

        def net(x, t, label, calls=calls):
            calls.append((x, t, label))
            return torch.zeros_like(x[:, :9])

        loss, _ = part.loss("net", {"net": net}, rows(part), given)
        ((x, t, label),) = calls
        level = given.choice("level", 2) + 1
        low, real = coarse(rows(part), transform_of("haar"), 2, level)[level], rows(part)[detail(level)]
        mean, std = (torch.tensor(found["coarse"][level][key]).view(1, -1, 1, 1) for key in ("mean", "std"))
        torch.testing.assert_close(x[:, 9:], (low - mean) / std)
        t = 0.001 + 0.999 * given.uniform("time").double().view(-1, 1, 1, 1)
        alpha, noise = torch.exp(-0.5 * (0.1 * t + 9.95 * t**2)), given.normal("noise", *real.shape[1:])
        data = real / torch.tensor(found["bands"][detail(level)]["std"]).view(1, -1, 1, 1)
        torch.testing.assert_close(x[:, :9].double(), alpha * data + (1 - alpha**2).sqrt() * noise, rtol=0, atol=1e-4)
        snr = alpha**2 / (1 - alpha**2)
        weight = alpha**-2 if snr_cap is None else snr.clamp_max(snr_cap) / snr
        assert loss.item() == pytest.approx((weight * noise.square()).mean().item(), rel=1e-3)
        labels.append(label)
        levels.add(level)
    label, true = torch.cat(labels), rows(part)["label"].repeat(60)
    assert (label == CLASSES).float().mean().item() == pytest.approx(0.25, abs=0.08) and levels == {1, 2}
    assert torch.equal(label[label < CLASSES], true[label < CLASSES])


# ---- Checks of a method

EXPERIMENT = SimpleNamespace(decompose={"bands": Wavelet(kind="wmgm", levels=2), "pixels": Pixels(kind="ssd")})
PLAIN = WMGMMethod(kind="wmgm")
GUIDED = ScoreSolver(guidance_scale=2.0)
FREE = replace(COARSE, conditional=False)


@pytest.mark.parametrize(
    ("parts", "method"),
    [
        ([GAN, COARSE], PLAIN),
        ([replace(REGRESSION, level=1), COARSE, replace(DIFFUSION, level=2)], METHOD),
        ([DIFFUSION, COARSE], replace(METHOD, solver=GUIDED)),
        ([replace(COARSE, dataset="pixels")], PLAIN),
    ],
)
def test_a_method_whose_parts_make_each_band_once_is_accepted_in_any_order(parts, method):
    check_method(EXPERIMENT, "methods.wmgm", method, parts)


@pytest.mark.parametrize(
    ("parts", "method", "key", "allowed"),
    [
        ([GAN], PLAIN, "", "one has the role coarse"),
        ([COARSE, COARSE, GAN], PLAIN, "", "one has the role coarse"),
        ([COARSE, replace(GAN, dataset="halves")], PLAIN, "", "one dataset"),
        ([COARSE], PLAIN, "", r"each of the levels \[1, 2\] once"),
        ([COARSE, GAN, replace(GAN, level=1)], PLAIN, "", r"each of the levels \[1, 2\] once"),
        ([COARSE, GAN], METHOD, ".detail_solver", "null, since no score model makes details"),
        ([FREE, GAN], replace(PLAIN, solver=GUIDED), ".solver.guidance_scale", "not conditional"),
        ([COARSE, DIFFUSION], replace(PLAIN, solver=GUIDED), ".solver.guidance_scale", "not conditional"),
        (
            [COARSE, DIFFUSION],
            replace(METHOD, detail_solver=GUIDED),
            ".detail_solver.guidance_scale",
            "not conditional",
        ),
    ],
)
def test_a_method_that_cannot_work_is_refused(parts, method, key, allowed):
    with pytest.raises(Bad, match=allowed) as raised:
        check_method(EXPERIMENT, "methods.wmgm", method, parts)
    assert raised.value.key == f"methods.wmgm{key}"


# ---- Samplers


def test_oracle_bands_give_the_image_back(bands, tmp_path):
    sampler = sampler_of(tmp_path, [(bands, COARSE), (bands, GAN)])
    images = pictures()[:4]
    truth = decompose_images(images, "haar", 2)
    sampler.coarse_band = lambda seeds, labels, trace: truth["ll"]
    sampler.detail_bands = lambda x, level, seeds, labels: truth[detail(level)]
    assert (sampler(SEEDS, LABELS) - images / 255).abs().max() < 1e-6


def test_a_generator_as_it_was_trained_is_a_generator_as_it_samples(bands, tmp_path):
    sampler = sampler_of(tmp_path, [(bands, COARSE), (bands, GAN)])
    part = build(bands, GAN)
    level, low, _, condition = part.given(rows(part, 4), draws(0, 4))
    noise = torch.stack([torch.randn(low.shape[1:], generator=generator(seed, detail(level))) for seed in SEEDS])
    made = part.networks["generator"](torch.cat([condition, noise], 1))
    with torch.inference_mode():
        found = sampler.detail_bands(low, level, SEEDS, LABELS)
    assert torch.allclose(found, part.levels.decode(made, level), atol=1e-6)


@pytest.mark.parametrize("level", [1, 2])
def test_details_are_sampled_in_the_standard_deviations_of_their_level(level, bands):
    """By hand for a generator that adds its noise to its condition."""
    part, found = build(bands, GAN), json.loads((bands / "statistics.json").read_text())
    low = coarse(rows(part, 4), transform_of("haar"), 2, level)[level]
    maker = part.config, lambda x: (x[:, :3] + x[:, 3:]).repeat(1, 3, 1, 1)
    made = wmgm_sampler.detail_bands(maker, low, level, SEEDS, LABELS, SOLVER)
    mean, std = (torch.tensor(found["coarse"][level][key]).view(1, -1, 1, 1) for key in ("mean", "std"))
    noise = noise_of_seeds(SEEDS, detail(level), tuple(low.shape[1:]))
    scale = torch.tensor(found["bands"][detail(level)]["std"]).view(1, -1, 1, 1)
    torch.testing.assert_close(made, scale * ((low - mean) / std + noise).repeat(1, 3, 1, 1))


def test_without_details_wmgm_is_sgm_bit_for_bit(pixels, tmp_path):
    whole = decompose(tmp_path / "whole", pictures())
    found = json.loads((whole / "statistics.json").read_text())
    # A decomposition of no level: its coarse band is the image itself.
    none = tmp_path / "none"
    none.mkdir()
    save_file({"ll": pictures() / 255, "label": torch.arange(64) % CLASSES}, none / "targets.safetensors")
    control = build(pixels, COARSE)
    whitening = control.networks["net"].whitening
    summary = {"mean": whitening.mean.flatten().tolist(), "std": whitening.std.flatten().tolist()}
    for key, values in summary.items():
        assert values == pytest.approx(found["bands"]["pixels"][key], rel=1e-5)
    statistic = {"classes": CLASSES, "wavelet": "haar", "levels": 0, "coarse": [summary]}
    (none / "statistics.json").write_text(json.dumps(statistic))
    part = build(none, COARSE)
    assert (part.config.levels, control.config.levels, part.column, control.column) == (0, 0, "ll", "pixels")
    weights, same = part.networks["net"].state_dict(), control.networks["net"].state_dict()
    assert weights.keys() == same.keys() and all(torch.equal(weights[name], same[name]) for name in weights)
    for step in range(3):
        losses = [p.loss("net", p.networks, rows(p), draws(step))[0] for p in (part, control)]
        assert torch.equal(*losses)
    images = [sampler_of(tmp_path, [(folder, COARSE)])(SEEDS, LABELS) for folder in (none, pixels)]
    assert torch.equal(*images)


@pytest.mark.parametrize("section", [OFFICIAL, GAN, DIFFUSION])
def test_image_k_depends_on_seed_k_alone(section, bands, tmp_path):
    sampler = sampler_of(tmp_path, [(bands, COARSE), (bands, section)])
    labels = torch.zeros(3, dtype=torch.long)
    images, others = sampler([4, 5, 6], labels), sampler([4, 8, 9], labels)
    assert torch.equal(images[0], others[0])
    assert torch.allclose(images[0], sampler([9, 8, 4], labels)[2], atol=1e-4)  # another place rounds differently
    assert (images[0] - images[1]).abs().max() > 0.01
    assert torch.equal(images, sampler([4, 5, 6], labels))


@pytest.mark.parametrize("name", ["euler-maruyama", "ode-euler", "ode-heun", "dpm-solver++"])
def test_calls_are_counted_for_the_score_model_and_for_every_pass(name, bands, tmp_path):
    method = replace(METHOD, solver=ScoreSolver(name=name, steps=5))
    sampler = sampler_of(tmp_path, [(bands, COARSE), (bands, GAN)], method)
    assert count_calls(sampler, LABELS) == {"coarse": 9 if name == "ode-heun" else 5, "details": 2}


def test_guidance_asks_the_score_models_twice_and_pulls_towards_the_class(bands, tmp_path):
    solvers = {
        "solver": replace(SOLVER, guidance_scale=3.0),
        "detail_solver": replace(DETAIL_SOLVER, guidance_scale=2.0),
    }
    strong = WMGMMethod(kind="wmgm", **solvers)
    parts = [(bands, COARSE), (bands, replace(DIFFUSION, conditional=True))]
    plain, guided = (sampler_of(tmp_path, parts, method) for method in (METHOD, strong))
    assert count_calls(plain, LABELS) == {"coarse": 4, "details": 6}
    assert count_calls(guided, LABELS) == {"coarse": 8, "details": 12}
    assert not torch.equal(plain(SEEDS, LABELS), guided(SEEDS, LABELS))
    parts = [(bands, replace(COARSE, conditional=False)), (bands, GAN)]
    with pytest.raises(
        ValueError, match="a guidance scale of 3.0 for a network without classes or an empty prompt; allowed: 1"
    ):
        sampler_of(tmp_path, parts, strong)(SEEDS, LABELS)


def test_details_of_a_score_model_are_sampled_as_the_coarse_band_where_no_solver_is_given(bands, tmp_path):
    parts = [(bands, COARSE), (bands, DIFFUSION)]
    shared, twice = (replace(METHOD, detail_solver=solver) for solver in (None, SOLVER))
    images, same = (sampler_of(tmp_path, parts, method)(SEEDS, LABELS) for method in (shared, twice))
    assert torch.equal(images, same)
    assert not torch.equal(images, sampler_of(tmp_path, parts)(SEEDS, LABELS))


def test_separate_generators_serve_each_their_level(bands, tmp_path):
    parts = [(bands, COARSE), (bands, replace(GAN, level=2)), (bands, replace(REGRESSION, level=1))]
    sampler = sampler_of(tmp_path, parts)
    assert count_calls(sampler, LABELS) == {"coarse": 4, "details-2": 1, "details-1": 1}
    images = sampler(SEEDS, LABELS)
    assert torch.equal(images, sampler_of(tmp_path, parts[::-1])(SEEDS, LABELS)), "the order of the folders matters"
    for wrong, found in (
        ([0, 1], "1 coarse models and details of the levels [2]"),
        ([0], "1 coarse models and details of the levels []"),
        ([0, 1, 1], "1 coarse models and details of the levels [2, 2]"),
        ([1, 2], "0 coarse models"),
        ([0, 0, 1, 2], "2 coarse models"),
    ):
        with pytest.raises(ForeignModel, match="not allowed; allowed: 1 and each of") as raised:
            sampler_of(tmp_path, [parts[k] for k in wrong])
        assert found in str(raised.value)


@pytest.mark.parametrize("wavelet", ["haar", "pixels"])
def test_a_trace_sees_the_coarse_band_form_and_then_every_level(wavelet, tmp_path):
    folder, seen = decompose(tmp_path / "bands", pictures(), wavelet), []
    sampler = sampler_of(tmp_path, [(folder, COARSE), (folder, GAN)])
    images = sampler(SEEDS, LABELS, lambda caption, shown: seen.append((caption, shown)))
    assert [caption for caption, _ in seen] == ["4 px"] * 4 + ["8 px", "16 px"]
    assert all(shown.min() >= 0 and shown.max() <= 1 for _, shown in seen)
    assert torch.equal(seen[-1][1], images)
    band = sampler.coarse_band(SEEDS, LABELS)
    gain = 4 if wavelet == "haar" else 1
    assert torch.allclose(seen[3][1], (band / gain).clamp(0, 1), atol=1e-6)


# ---- Diversity


def test_diversity_is_one_for_the_distribution_of_the_data_and_zero_for_a_regression():
    random = torch.Generator().manual_seed(0)
    mean = torch.randn(400, 3, 4, 4, generator=random)
    real = mean + 0.5 * torch.randn(mean.shape, generator=random)
    right = adversarial.diversity(lambda k: mean + 0.5 * torch.randn(mean.shape, generator=random), real)
    assert right["ratio"] == pytest.approx(1, rel=0.05) and not right["collapsed"]
    assert right["spread"] == pytest.approx(0.25, rel=0.05) and right["energy_ratio"] == pytest.approx(1, rel=0.05)
    assert right["kurtosis_generated"] == pytest.approx(3, rel=0.05)
    still = adversarial.diversity(lambda k: mean, real)
    assert still["ratio"] == 0 and still["collapsed"] and still["energy_ratio"] < 0.9
    few = adversarial.diversity(lambda k: mean + 0.1 * torch.randn(mean.shape, generator=random), real)
    assert few["ratio"] == pytest.approx(0.04, rel=0.1) and few["collapsed"]


def test_the_diversity_of_two_draws_by_hand():
    """Means 1 and 3, so errors of 2 and 2, less half the spread; energies of 6 and 17."""
    draws = [torch.tensor(values).view(2, 1, 1, 1) for values in ([0.0, 2.0], [2.0, 4.0])]
    found = adversarial.diversity(lambda k: draws[k], torch.tensor([3.0, 5.0]).view(2, 1, 1, 1), draws=2)
    by_hand = {"spread": 2, "residual": 4 - 2 / 2, "ratio": 2 / 3, "noise_share": 2 / 6, "energy_ratio": 6 / 17}
    by_hand |= {"kurtosis_real": 1, "kurtosis_generated": 8 / 2**2, "collapsed": False}
    assert found == pytest.approx(by_hand)


def test_a_trained_generator_is_examined_level_by_level_and_says_when_its_noise_does_nothing(bands):
    part = build(bands, GAN)
    found = part.examine()["diversity"]
    assert [row["level"] for row in found] == [2, 1]
    assert all(row["spread"] > 0 and 0 < row["noise_share"] < 1 for row in found)
    with torch.no_grad():
        part.networks["generator"].encoder[0].layers[0].weight[:, 3:] = 0  # the channels of the noise
        part.networks["generator"].encoder[0].shortcut.weight[:, 3:] = 0
    found = part.examine()["diversity"]
    assert all(row["collapsed"] and row["spread"] < 1e-9 and row["noise_share"] < 1e-6 for row in found)
    assert build(bands, REGRESSION).examine() == {}, "a regression is meant to have no noise"


def test_details_are_examined_as_bands_of_the_data(bands):
    """A generator that returns its noise makes details of the data's own variance about zero."""
    part, found = build(bands, GAN), json.loads((bands / "statistics.json").read_text())
    part.networks["generator"].forward = lambda x: x[:, 3:].repeat(1, 3, 1, 1)
    for row in part.examine()["diversity"]:
        variance = torch.tensor(found["bands"][detail(row["level"])]["std"]).square().mean().item()
        assert row["spread"] == pytest.approx(variance, rel=0.05)
        assert row["noise_share"] == pytest.approx(1, rel=0.01) and row["ratio"] == pytest.approx(1, rel=0.1)
