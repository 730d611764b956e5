"""SSD trains and samples as the equations say, and with one level is DDPM."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from conftest import TRAINING
from safetensors.torch import save_file
from torch import Tensor

from multiscale.core.compat import make_torchvision_importable
from multiscale.core.pixels import to_signed, to_unit
from multiscale.core.streams import Draws, generator, noise_of_seeds
from multiscale.methods.ssd import parts as ssd_parts
from multiscale.methods.ssd import sampler as ssd_sampler
from multiscale.methods.ssd.process import CLEAN, ScaleSpaceProcess, linear_alpha_bar
from multiscale.methods.ssd.settings import SSDMethod, SSDPart
from multiscale.sampling import count_calls
from multiscale.training.checkpoint import Checkpoints
from multiscale.training.loop import fit

make_torchvision_importable()
from diffusers.schedulers import scheduling_ddpm  # noqa: E402

CLASSES = 3
NETWORK = {"width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [8], "heads": 2, "groups": 4}
PROCESS = {"steps": 40, "levels": 2}
PART = {"method": "ssd", "kind": "ssd", "dataset": "pixels", "network": NETWORK, "flip": True, "training": TRAINING}


@pytest.fixture
def pixels(tmp_path):
    """A folder of 64 random images of 16x16 pixels."""
    random = torch.Generator().manual_seed(0)
    rows = {
        "pixels": torch.randint(0, 256, (64, 3, 16, 16), generator=random, dtype=torch.uint8),
        "label": torch.arange(64) % CLASSES,
    }
    save_file(rows, tmp_path / "targets.safetensors")
    (tmp_path / "statistics.json").write_text(json.dumps({"classes": CLASSES}))
    return tmp_path


def build(folder, **section):
    """A part, with the zero layers of its network randomised."""
    torch.manual_seed(0)
    process = {**PROCESS, **section.get("process", {})}
    part = ssd_parts.build_part("part", SSDPart.model_validate(PART | section | {"process": process}), folder)
    for parameter in part.networks["net"].parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return part


def sampler_of(folder, solver=None, **section):
    """A sampler loaded from the files that the stage writes."""
    out = folder / "model"
    out.mkdir(exist_ok=True)
    build(folder, **section).save(out)
    method = SSDMethod.model_validate({"kind": "ssd", "solver": {"steps": 10, **(solver or {})}})
    return ssd_sampler.load_sampler([out], method, None, "fp32")


def draws(step: int, rows: slice = slice(0, 8)) -> Draws:
    return Draws(0, "part", step, 8, rows, torch.device("cpu"))


def loss_of(part, step: int) -> Tensor:
    return part.loss("net", part.networks, part.data[torch.arange(8)], draws(step))[0]


LABELS = torch.arange(4) % CLASSES


@pytest.mark.parametrize("noise_factor", [1.0, 0.505])
def test_along_a_chain_told_the_truth_the_noise_stays_white(noise_factor):
    process = ScaleSpaceProcess(steps=100, levels=3, noise_factor=noise_factor).build(16)
    random, count = torch.Generator().manual_seed(1), 4000
    truth = torch.rand(1, 1, 16, 16, generator=random) * 2 - 1
    x = process.signal(99) * process.shrink(truth, 4) + process.sigma(99) * torch.randn(
        count, 1, 4, 4, generator=random
    )
    watched = {98, 90, 89, 88, 70, 56, 55, 54, 53, 30, 10, 0}
    for t in range(99, 0, -1):
        resolution = process.resolution(t - 1)
        clean = process.shrink(truth, resolution).expand(count, -1, -1, -1)
        x = process.transition(t - 1, t).reverse(
            x, clean, torch.randn(count, 1, resolution, resolution, generator=random)
        )
        residual = (x - process.signal(t - 1) * clean).flatten(1)
        assert residual.square().mean().sqrt().item() == pytest.approx(process.sigma(t - 1), rel=0.01)
        if t - 1 in watched:
            correlation = torch.corrcoef(residual.T).fill_diagonal_(0)
            assert correlation.abs().max() < 5 / math.sqrt(count)
    assert process.transitions == [55, 89]


def test_the_noise_factor_scales_sigma_at_each_level_and_the_samplers_start(pixels):
    plain, less = (ScaleSpaceProcess(steps=100, levels=3, noise_factor=factor).build(16) for factor in (1.0, 0.6))
    for t, level in ((54, 0), (55, 1), (89, 2)):
        assert less.sigma(t) == pytest.approx(plain.sigma(t) * 0.6**level)
        assert less.snr(t) == pytest.approx(plain.snr(t) / 0.36**level)
    noise = noise_of_seeds([1, 2, 3, 4], "state-39", (3, 8, 8))
    for factor in (1.0, 0.6):
        sampler = sampler_of(pixels, process={"levels": 2, "noise_factor": factor})
        seen = []
        sampler.net.register_forward_pre_hook(lambda net, inputs, seen=seen: seen.append(inputs[0]))
        sampler([1, 2, 3, 4], LABELS)
        assert torch.equal(seen[0], factor * noise)


def test_one_level_is_the_ddpm_chain_with_the_small_variance(pixels):
    sampler = sampler_of(pixels, {"steps": 40}, process={"levels": 1})
    sampler.net.head.weight.mul_(0.1)  # tame: an untrained network blows rounding up from step to step
    images = sampler([1, 2, 3, 4], LABELS)
    alpha_bar = [1.0, *linear_alpha_bar(40)]
    x = noise_of_seeds([1, 2, 3, 4], "state-39", (3, 16, 16))
    with torch.inference_mode():
        for t in range(39, -1, -1):  # the textbook's formulas; alpha_bar[t] is that of the state before t
            before, now = alpha_bar[t], alpha_bar[t + 1]
            beta = 1 - now / before
            clean = sampler.net(x, torch.full((4,), t), LABELS, 16).clamp(-1, 1)
            mean = math.sqrt(before) * beta / (1 - now) * clean + math.sqrt(1 - beta) * (1 - before) / (1 - now) * x
            z = noise_of_seeds([1, 2, 3, 4], f"state-{t - 1}", (3, 16, 16)) if t else 0
            x = mean + math.sqrt(beta * (1 - before) / (1 - now)) * z
    assert (images - to_unit(x)).abs().max() < 1e-6


def by_diffusers(predict, prediction: str, variance: str, steps: int, states: int, noises, monkeypatch) -> Tensor:
    """The whole chain of diffusers' DDPMScheduler, on our betas and our noise, from state T - 1 to the image."""
    betas = np.linspace(1e-4, 0.02, steps) * 1000 / steps
    options = {"prediction_type": prediction, "variance_type": variance, "clip_sample": True}
    scheduler = scheduling_ddpm.DDPMScheduler(steps, trained_betas=betas, timestep_spacing="linspace", **options)
    scheduler.alphas_cumprod = torch.from_numpy(np.cumprod(1 - betas))  # in float64: 1 - alpha_bar_0 is 1e-4
    scheduler.set_timesteps(states)
    x = noises(steps - 1)
    for t in scheduler.timesteps:
        drawn = int(scheduler.previous_timestep(t))
        monkeypatch.setattr(scheduling_ddpm, "randn_tensor", lambda *args, **options: noises(drawn))  # noqa: B023
        x = scheduler.step(predict(x, t), t, x).prev_sample
    return x


@pytest.mark.parametrize(("steps", "states"), [(40, 40), (1000, 12)], ids=["every state", "respaced"])
@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("predicts", ["x0", "noise"])
def test_one_level_is_the_chain_of_diffusers(predicts, variance, steps, states, pixels, monkeypatch):
    one_level = {"process": {"steps": steps, "levels": 1}, "predicts": predicts}
    sampler = sampler_of(pixels, {"steps": states, "variance": variance}, **one_level)
    if predicts == "x0":
        sampler.net.head.weight.mul_(0.1)  # tame: an untrained network blows rounding up from step to step

    def noises(state: int) -> Tensor:
        return noise_of_seeds([1, 2, 3, 4], f"state-{state}", (3, 16, 16))

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return sampler.net(x, t.expand(4), LABELS, 16)

    name = {"x0": "sample", "noise": "epsilon"}[predicts]
    with torch.inference_mode():
        theirs = by_diffusers(predict, name, f"fixed_{variance}", steps, states, noises, monkeypatch)
    assert (sampler([1, 2, 3, 4], LABELS) - to_unit(theirs)).abs().max() < 1e-5


@pytest.mark.parametrize("cap", [None, 5.0])
def test_the_loss_of_the_noise_is_plain_without_a_cap(cap, pixels):
    part = build(pixels, predicts="noise", snr_cap=cap, flip=False, label_dropout=0.0, process={"levels": 1})
    data, alpha_bar = part.data[torch.arange(8)], torch.tensor(linear_alpha_bar(40))
    for step in range(5):
        t = part.timesteps.draw(draws(step)).t
        noise = torch.randn(8, 3, 16, 16, generator=generator(0, "part/noise", step))
        kept = alpha_bar[t].float().view(-1, 1, 1, 1)
        x = kept.sqrt() * (data["pixels"].float() / 127.5 - 1) + (1 - kept).sqrt() * noise
        errors = (part.networks["net"](x, t, data["label"], 16) - noise).square().mean((1, 2, 3))
        snr = (kept / (1 - kept)).flatten()
        weight = 1 if cap is None else snr.clamp(max=cap) / snr
        assert loss_of(part, step).item() == pytest.approx((weight * errors).mean().item(), rel=1e-4)


def test_the_identity_operator_is_one_level_bit_for_bit(pixels):
    section = {"process": {"operator": "identity"}}
    control = build(pixels, process={"levels": 1})
    part = build(pixels, **section)
    weights = part.networks["net"].state_dict()
    assert {name: tuple(value.shape) for name, value in weights.items()} == {
        name: tuple(value.shape) for name, value in control.networks["net"].state_dict().items()
    }
    assert all(torch.equal(weights[name], value) for name, value in control.networks["net"].state_dict().items())
    for step in range(5):
        assert torch.equal(loss_of(control, step), loss_of(part, step))
    images = [
        sampler_of(pixels, process={"levels": 1})([1, 2, 3, 4], LABELS),
        sampler_of(pixels, **section)([1, 2, 3, 4], LABELS),
    ]
    assert torch.equal(*images)


@pytest.mark.parametrize("oversample", [1, 6])
def test_the_loss_is_the_weighted_error_of_the_clean_image_at_the_next_resolution(oversample, pixels):
    part = build(pixels, oversample=oversample, flip=False, label_dropout=0.0, process={"levels": 2})
    process, net, data = part.process, part.networks["net"], part.data[torch.arange(8)]
    clean, kinds = to_signed(data["pixels"]), set()
    for step in range(40):
        times = part.timesteps.draw(draws(step))
        noise = torch.randn(8, 3, times.resolution, times.resolution, generator=generator(0, "part/noise", step))
        errors = []
        for i, t in enumerate(times.t.tolist()):
            assert (times.resolution, times.target_resolution) == (process.resolution(t), process.resolution(t - 1))
            small = process.shrink(clean[i : i + 1], process.resolution(t))
            target = process.shrink(clean[i : i + 1], process.resolution(t - 1))
            x = process.signal(t) * small + process.sigma(t) * noise[i]
            predicted = net(x, torch.tensor([t]), data["label"][i : i + 1], process.resolution(t - 1))
            errors.append(min(process.snr(t), 5) * (predicted - target).square().mean())
        expected = torch.stack(errors).mean() * times.weight
        assert loss_of(part, step).item() == pytest.approx(expected.item(), rel=1e-4)
        kinds.add((times.resolution, times.target_resolution))
    assert kinds >= {(16, 16), (8, 8)} and (oversample == 1 or (8, 16) in kinds)


def test_flips_mirror_half_of_the_images_and_labels_are_dropped_at_their_rate(pixels):
    seen, labels = [], []
    part = build(pixels, label_dropout=0.3, process={"operator": "identity"})
    part.process.shrink = lambda clean, resolution: seen.append(clean) or clean
    part.networks["net"].forward = lambda x, t, c, out_resolution: labels.append(c) or x
    batch = part.data[torch.arange(8)]
    original, mirrored = to_signed(batch["pixels"]), 0
    for step in range(300):
        loss_of(part, step)
        for image, source in zip(seen[-1], original):
            assert torch.equal(image, source) or torch.equal(image, source.flip(-1))
            mirrored += not torch.equal(image, source)
    assert mirrored / 2400 == pytest.approx(0.5, abs=0.03)
    dropped = torch.stack(labels) == CLASSES
    assert dropped.float().mean().item() == pytest.approx(0.3, abs=0.03)
    assert torch.equal(torch.stack(labels)[~dropped], batch["label"].expand(300, 8)[~dropped])


def test_image_k_depends_on_seed_k_alone(pixels):
    sampler = sampler_of(pixels)
    labels = torch.zeros(3, dtype=torch.long)
    images, others = sampler([4, 5, 6], labels), sampler([9, 8, 4], labels)
    assert torch.allclose(images[0], others[2], atol=1e-5)
    assert (images[0] - images[1]).abs().max() > 0.01
    assert torch.equal(images, sampler([4, 5, 6], labels))


VARIANTS = {
    "flexi": {},
    "three levels": {"process": {"levels": 3}, "network": {**NETWORK, "multipliers": [1, 1, 2]}},
    "full unet": {"unet": "full"},
    "box": {"process": {"operator": "box"}},
    "identity": {"process": {"operator": "identity"}},
    "gradual": {"unet": "enlarged", "process": {"resolutions": "gradual", "levels": 9, "schedule": "equal"}},
    "unconditional": {"conditional": False},
    "other schedule": {"process": {"schedule": "sigmoid-like", "gamma": 3.0}},
}


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_trains_and_samples(name, eta, pixels):
    part = build(pixels, **VARIANTS[name])
    for step in range(3):
        loss = loss_of(part, step)
        loss.backward()
        assert loss.isfinite()
    images = sampler_of(pixels, {"eta": eta}, **VARIANTS[name])([1, 2, 3, 4], LABELS)
    assert images.shape == (4, 3, 16, 16)
    assert images.isfinite().all() and images.min() >= 0 and images.max() <= 1
    assert images.std() > 0.01


def test_a_trace_sees_state_and_prediction_grow(pixels):
    sampler = sampler_of(pixels)
    seen = []
    images = sampler([1, 2, 3, 4], LABELS, lambda caption, shown: seen.append((caption, shown)))
    resolutions = [shown.shape[-1] for _, shown in seen]
    assert resolutions == sorted(resolutions) and set(resolutions) == {8, 16}
    assert [caption for caption, _ in seen] == [f"{resolution} px" for resolution in resolutions]
    assert all(shown.min() >= 0 and shown.max() <= 1 for _, shown in seen)
    states, clean = seen[0][1].view(4, 2, 3, 8, 8).unbind(1)
    assert not torch.equal(states, clean)
    states, clean = seen[-1][1].view(4, 2, 3, 16, 16).unbind(1)
    assert torch.equal(states, images) and torch.equal(clean, images)


def test_a_chain_starts_from_noise_and_ends_in_the_clean_prediction(pixels):
    sampler = sampler_of(pixels)
    steps = [(t, s) for t, s, _ in sampler.plan]
    assert steps[0][0] == 39 and steps[-1] == (0, CLEAN)
    assert all(s == t for (_, s), (t, _) in zip(steps, steps[1:]))
    assert {t for t, _ in steps} >= set(sampler.process.transitions)
    assert count_calls(sampler, LABELS) == {"net": len(steps)}
    released = sampler_of(pixels, {"last_step": "as-released"})
    assert count_calls(released, LABELS) == {"net": len(steps) - 1}


def test_guidance_asks_the_network_twice_and_pulls_towards_the_class(pixels):
    plain, guided = sampler_of(pixels), sampler_of(pixels, {"guidance_scale": 3.0})
    assert count_calls(guided, LABELS)["net"] == 2 * count_calls(plain, LABELS)["net"]
    assert not torch.equal(plain([1, 2, 3, 4], LABELS), guided([1, 2, 3, 4], LABELS))


def test_an_interval_of_guidance_is_a_share_of_the_states(pixels):
    """Of 40 states those from 10 to 20 are guided, each in a batch of twice as many images."""
    sampler, seen = sampler_of(pixels, {"guidance_scale": 3.0, "guidance_interval": [0.25, 0.5]}), {}
    sampler.net.register_forward_pre_hook(lambda net, given: seen.update({int(given[1][0]): len(given[0])}))
    sampler([1, 2, 3, 4], LABELS)
    assert seen == {t: 8 if 10 <= t <= 20 else 4 for t, _, _ in sampler.plan} and set(seen.values()) == {4, 8}


def test_with_eta_zero_noise_is_drawn_at_the_start_and_at_transitions_alone(pixels):
    sampler = sampler_of(pixels, {"eta": 0.0})
    drawing = [t for t, _, transition in sampler.plan if transition.needs_noise]
    assert drawing == sampler.process.transitions


def test_training_that_was_cut_short_ends_in_the_same_weights(pixels, tmp_path):
    """Only weights at the resolutions drawn so far have been updated; a resumed optimiser must know which."""

    class Cut(Exception):
        pass

    def train(scratch: str, stop: int | None = None):
        def on_step(seen: int) -> None:
            if seen == stop:
                raise Cut

        part = build(pixels, oversample=4)
        return fit(
            part, TRAINING, 0, Checkpoints(tmp_path / scratch, "part", "key"), on_step=on_step, checkpoint_seconds=0
        )

    whole = train("a")
    with pytest.raises(Cut):
        train("b", stop=24)
    resumed = train("b")
    assert whole.weights.keys() == resumed.weights.keys()
    assert all(torch.equal(whole.weights[name], resumed.weights[name]) for name in whole.weights)


@pytest.mark.parametrize(
    ("section", "solver", "message"),
    [
        ({"process": {"levels": 3}}, {}, "3 levels of resolutions in a UNet of 2; allowed: 1 to 2"),
        ({"process": {"levels": 6}}, {}, "a resolution of 16 cannot be halved 5 times"),
        ({"process": {"resolutions": "gradual"}}, {}, "a resolution of 15 has no level in the UNet; allowed: 16, 8"),
        (
            {"unet": "full", "process": {"resolutions": "gradual"}},
            {},
            "a UNet of 2 levels cannot divide a resolution of 15; allowed: multiples of 2",
        ),
        (
            {"conditional": False},
            {"guidance_scale": 2.0},
            "a guidance scale of 2.0 for a network without classes or an empty prompt; allowed: 1",
        ),
        ({}, {"steps": 41}, "41 sampling steps of a process of 40; allowed: 2 to 40"),
        ({"predicts": "noise"}, {}, "x0, since the network answers at the resolution of the next state"),
        ({}, {"variance": "large"}, "the variance beta_t of a step from resolution 16 to 8; allowed: small"),
        (
            {"process": {"levels": 1}},
            {"variance": "large", "eta": 0.5},
            "small, since an eta of 0.5 draws less already",
        ),
    ],
)
def test_impossible_settings_are_refused_in_one_line(section, solver, message, pixels):
    with pytest.raises(ValueError, match=message):
        sampler_of(pixels, solver, **section)([1, 2, 3, 4], LABELS)
