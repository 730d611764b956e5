"""MSF's identities (section 9 of its spec): targets, priors, the loss of a scale, sampling, the one-scale control."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from multiscale import sampling
from multiscale.core.models import ForeignModel
from multiscale.core.normalisation import Normalisation
from multiscale.core.resize import area_to, bilinear_to
from multiscale.core.storage import Table
from multiscale.core.streams import Draws, noise_of_seeds
from multiscale.flow import Solver
from multiscale.methods.msf import sampler as msf_sampler
from multiscale.methods.msf.parts import ScaleConfig, ScalePart
from multiscale.methods.msf.residual import accumulate, decompose, prior
from multiscale.methods.msf.settings import FlowPart, MSFMethod
from multiscale.networks.dit import DiTNetwork
from multiscale.training.part import Training

RESOLUTIONS = {1: [8], 2: [6, 8], 3: [4, 6, 8], 4: [4, 6, 8, 16]}
CHANNELS, CLASSES = 2, 3
NETWORK = DiTNetwork(depth=2, width=32, heads=2, patch=2)
LATENT = Normalisation(shift=[0.125, 0.0], scale=[0.25, 0.5])


def config_of(index: int, resolutions: list[int]) -> ScaleConfig:
    """The config of one scale, with powers of two so that normalisation is exact."""
    target = Normalisation(shift=[0.25, -0.5], scale=[0.5, 2.0 ** -(index + 2)])
    return ScaleConfig(
        index=index, resolutions=resolutions, target=target, latent=LATENT, classes=CLASSES, network=NETWORK
    )


def euler(guidance_scale: float = 1.0, steps: int = 5) -> Solver:
    return Solver(name="euler", steps=steps, guidance_scale=guidance_scale)


class Pixels(nn.Module):
    """An identity codec that records the latents."""

    def decode(self, latents: Tensor) -> Tensor:
        self.latents = latents
        return latents


class Oracle(nn.Module):
    """The velocity of the straight path to known data; records its inputs."""

    def __init__(self, data: Tensor):
        super().__init__()
        self.data = data

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        self.given, self.labels = x[:, CHANNELS:], labels
        data = self.data.repeat(len(x) // len(self.data), 1, 1, 1)
        return (x[:, :CHANNELS] - data) / t.view(-1, 1, 1, 1)


def random_network(config: ScaleConfig) -> nn.Module:
    """A network with its zero layers randomised."""
    net = config.build()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.15)
    return net


def random_sampler(resolutions: list[int], solvers: list[Solver], precision: str = "fp32") -> msf_sampler.MSFSampler:
    torch.manual_seed(0)
    configs = [config_of(k, resolutions) for k in range(len(resolutions))]
    return msf_sampler.MSFSampler([random_network(config) for config in configs], configs, solvers, Pixels(), precision)


def draws_of(count: int) -> Draws:
    return Draws(0, "part", 3, count, slice(0, count), torch.device("cpu"))


def dyadic(*shape: int) -> Tensor:
    """Random multiples of 1/64: their sums, halves and interpolations between grids are exact."""
    return torch.randint(-128, 128, shape, generator=torch.Generator().manual_seed(sum(shape))) / 64


def part_of(index: int, targets: list[Tensor], net: nn.Module, dropout: float = 0.0, noise: float = 0.0) -> ScalePart:
    data = Table({"label": torch.arange(len(targets[0])).numpy()})
    settings = FlowPart(
        method="msf",
        kind="msf",
        dataset="residual",
        index=index,
        network=NETWORK,
        label_dropout=dropout,
        prior_noise=noise,
        training=Training(images=1),
    )
    return ScalePart("part", data, net, config_of(index, [y.shape[-1] for y in targets]), settings)


def batch_of(targets: list[Tensor]) -> dict[str, Tensor]:
    return {f"y{k}": y for k, y in enumerate(targets)} | {"label": torch.arange(len(targets[0])) % CLASSES}


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("scales", [2, 3, 4])
def test_the_targets_add_up_to_the_latent(scales, dtype, tolerance):
    resolutions = RESOLUTIONS[scales]
    z = torch.randn(5, CHANNELS, resolutions[-1], resolutions[-1], dtype=dtype)
    base = torch.randn(5, CHANNELS, resolutions[0], resolutions[0], dtype=dtype)
    targets = decompose(z, base, resolutions)
    assert [y.shape[-1] for y in targets] == resolutions and targets[0] is base
    assert all(y.std() > 0.05 for y in targets), "every scale carries something"
    ups = sum(torch.nn.functional.interpolate(y, size=resolutions[-1], mode="bilinear") for y in targets)
    assert (ups - z).abs().max() < tolerance
    assert (accumulate(targets, resolutions[-1]) - z).abs().max() < tolerance


def test_one_scale_leaves_the_latent_as_it_is():
    z = torch.randn(2, CHANNELS, 8, 8)
    assert torch.equal(*decompose(z, torch.randn(2, CHANNELS, 8, 8), [8]), z)


def test_constant_latents_have_no_residual():
    images = torch.tensor([[0.25, -0.5], [0.5, 0.75]]).view(2, 2, 1, 1).expand(2, 2, 32, 32)
    noisy = images + torch.randn(2, 2, 32, 32)

    def targets(x: Tensor) -> list[Tensor]:  # the oracle encoder is the mean of 4x4 pixels
        full, base = area_to(x, 8), area_to(area_to(x, 24), 6)
        return decompose(full, base, [6, 7, 8])

    assert all(y.abs().max() < 1e-7 for y in targets(images)[1:])
    assert torch.equal(targets(images)[0], images[..., :6, :6])
    assert all(y.abs().max() > 0.1 for y in targets(noisy)[1:])


@pytest.mark.parametrize("scales", [2, 3, 4])
def test_the_prior_is_what_algorithm_2_makes_of_the_scales_before(scales):
    resolutions = RESOLUTIONS[scales]
    targets = [torch.randn(3, CHANNELS, resolution, resolution, dtype=torch.float64) for resolution in resolutions]
    so_far = torch.zeros(3, CHANNELS, resolutions[-1], resolutions[-1], dtype=torch.float64)
    for k, resolution in enumerate(resolutions):
        if k:
            expected = bilinear_to(so_far, resolution)
            torch.testing.assert_close(prior(targets[:k], resolution, resolutions[-1]), expected, rtol=0, atol=1e-12)
        so_far = so_far + bilinear_to(targets[k], resolutions[-1])


@pytest.mark.parametrize("guidance_scale", [1.0, 1.5])
@pytest.mark.parametrize("scales", [1, 2, 3])
def test_one_euler_step_along_a_perfect_velocity_returns_the_data_exactly(scales, guidance_scale, monkeypatch):
    monkeypatch.setattr(msf_sampler, "noise_of_seeds", lambda *address: (noise_of_seeds(*address) * 64).round() / 64)
    resolutions = RESOLUTIONS[scales]
    data = [dyadic(3, CHANNELS, resolution, resolution) for resolution in resolutions]
    configs = [config_of(k, resolutions) for k in range(scales)]
    targets = [config.target.undo(y) for y, config in zip(data, configs)]
    nets, codec = [Oracle(y) for y in data], Pixels()
    sampler = msf_sampler.MSFSampler(nets, configs, [euler(guidance_scale, steps=1)] * scales, codec, "fp32")
    images = sampler([7, 8, 9], torch.tensor([0, 1, 2]))

    z = accumulate(targets, resolutions[-1])
    latents = z * torch.tensor([0.25, 0.5]).view(1, 2, 1, 1) + torch.tensor([0.125, 0.0]).view(1, 2, 1, 1)
    assert torch.equal(codec.latents, latents)
    assert torch.equal(images, ((latents + 1) / 2).clamp(0, 1))
    for k in range(1, scales):  # what a scale is given in sampling is what it was given in training
        trained = Oracle(data[k])
        part_of(k, targets, trained).loss("net", {"net": trained}, batch_of(targets), draws_of(3))
        assert torch.equal(nets[k].given[:3], trained.given)
        assert torch.equal(nets[k].given[:3], prior(targets[:k], resolutions[k], resolutions[-1]))
        assert torch.equal(nets[k].given[-3:], nets[k].given[:3]), "both halves of a guided batch get the prior"


def test_the_loss_of_a_scale_is_zero_for_the_velocity_of_its_normalised_target():
    targets = [torch.randn(4, CHANNELS, resolution, resolution) for resolution in RESOLUTIONS[3]]
    for k in range(3):
        data = config_of(k, RESOLUTIONS[3]).target.apply(targets[k])
        net = Oracle(data)
        loss, _ = part_of(k, targets, net).loss("net", {"net": net}, batch_of(targets), draws_of(4))
        assert loss < 1e-8
        assert net.given.shape[1] == (CHANNELS if k else 0), "scale 0 has no prior"
        net.data = data + 1
        assert part_of(k, targets, net).loss("net", {"net": net}, batch_of(targets), draws_of(4))[0] > 0.5


def test_labels_are_dropped_at_their_rate_and_independently_of_the_data():
    targets = [torch.randn(4000, CHANNELS, 2, 2)]
    net = Oracle(targets[0])
    for rate in (0.0, 0.1, 1.0):
        part_of(0, targets, net, dropout=rate).loss("net", {"net": net}, batch_of(targets), draws_of(4000))
        dropped = net.labels == CLASSES
        assert dropped.float().mean().item() == pytest.approx(rate, abs=0.02)
        assert torch.equal(net.labels[~dropped], batch_of(targets)["label"][~dropped])


def test_prior_noise_is_added_to_the_prior_alone():
    targets = [torch.randn(200, CHANNELS, resolution, resolution) for resolution in (6, 8)]
    given, losses = {}, {}
    for noise in (0.0, 0.5):
        net = Oracle(torch.zeros(200, CHANNELS, 8, 8))
        part = part_of(1, targets, net, noise=noise)
        losses[noise], _ = part.loss("net", {"net": net}, batch_of(targets), draws_of(200))
        given[noise] = net.given
    assert torch.equal(losses[0.0], losses[0.5])  # the state and the target are the same
    added, of_state = given[0.5] - given[0.0], draws_of(200).normal("noise", CHANNELS, 8, 8)
    assert added.std().item() == pytest.approx(0.5, rel=0.03)
    assert (added * of_state).mean().abs() < 0.02, "it tells nothing of the noise in the state"


@pytest.mark.parametrize("guidance_scale", [1.0, 1.5])
def test_one_scale_is_the_plain_dit_bit_for_bit(guidance_scale, tmp_path):
    config = config_of(0, [8])
    net, labels, seeds = random_network(config), torch.tensor([0, 1, 2, 0]), [3, 1, 4, 5]
    z = torch.randn(4, CHANNELS, 8, 8)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (config.target.shift, config.target.scale))
    draws = draws_of(4)

    y, noise = (z - mean) / std, draws.normal("noise", CHANNELS, 8, 8)
    t = torch.sigmoid(draws.normal("time"))
    at = t.view(-1, 1, 1, 1)
    plain = (net((1 - at) * y + at * noise, t, labels) - (noise - y)).square().mean()
    part = part_of(0, [z], net)
    loss, _ = part.loss("net", {"net": net}, {"y0": z, "label": labels}, draws)
    assert torch.equal(loss, plain)

    part.save(tmp_path)
    method = MSFMethod(kind="msf", scales=[euler(guidance_scale)])
    images = msf_sampler.load_sampler([tmp_path], method, Pixels(), "fp32")(seeds, labels)

    x, times = noise_of_seeds(seeds, "scale-0", (CHANNELS, 8, 8)), torch.linspace(1, 0, 6)
    with torch.inference_mode():
        for now, after in zip(times[:-1], times[1:]):
            classes = torch.cat([labels, torch.full((4,), CLASSES)]) if guidance_scale != 1 else labels
            copies = len(classes) // 4
            slope = net(x.repeat(copies, 1, 1, 1), now.repeat(4 * copies), classes)
            if guidance_scale != 1:
                slope = slope[4:] + guidance_scale * (slope[:4] - slope[4:])
            x = x + (after - now) * slope
    latents = (x * std + mean) * torch.tensor([0.25, 0.5]).view(1, 2, 1, 1) + torch.tensor([0.125, 0]).view(1, 2, 1, 1)
    assert torch.equal(images, ((latents + 1) / 2).clamp(0, 1))
    assert images.std() > 0.05 and not torch.equal(images[0], images[3]), "the comparison is not one of constants"


def test_trained_scales_are_sampled_in_their_order_and_all_of_them(tmp_path):
    targets = [torch.randn(2, CHANNELS, resolution, resolution) for resolution in RESOLUTIONS[3]]
    nets = [random_network(config_of(k, RESOLUTIONS[3])) for k in range(3)]
    folders = [tmp_path / name for name in "bca"]
    for k, (net, folder) in enumerate(zip(nets, folders)):
        folder.mkdir()
        part_of(k, targets, net).save(folder)
    method = MSFMethod(kind="msf")
    configs, labels = [config_of(k, RESOLUTIONS[3]) for k in range(3)], torch.tensor([0, 1])
    expected = msf_sampler.MSFSampler(nets, configs, [Solver()] * 3, Pixels(), "fp32")([0, 1], labels)
    for order in ([0, 1, 2], [2, 0, 1]):
        sampler = msf_sampler.load_sampler([folders[k] for k in order], method, Pixels(), "fp32")
        assert torch.equal(sampler([0, 1], labels), expected)
    for some in ([0, 1], [1, 2], [0, 1, 2, 2]):
        with pytest.raises(ForeignModel, match="all 3 scales"):
            msf_sampler.load_sampler([folders[k] for k in some], method, Pixels(), "fp32")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_image_depends_on_its_seed_and_label_alone(precision):
    sampler = random_sampler(RESOLUTIONS[2], [euler(1.5), euler()], precision)

    def images(seeds: list[int], batch: int) -> Tensor:
        return torch.cat(list(sampling.generate(sampler, seeds, torch.tensor(seeds) % CLASSES, batch)))

    seeds = [0, 1, 2, 3, 4, 5]
    first = images(seeds, 4)
    assert len(first) == 6 and len(first.flatten(1).unique(dim=0)) == 6 and first.float().std() > 10
    assert torch.equal(images([5, 3, 0, 4, 2, 1], 4), first[[5, 3, 0, 4, 2, 1]])  # other positions and neighbours
    assert torch.equal(images([99, 3], 4)[1], first[3])  # a batch filled up
    if precision == "fp32":
        assert (images(seeds, 3).int() - first.int()).abs().max() <= 1  # kernels may round otherwise for another size


def test_weights_cast_once_give_what_weights_cast_at_every_call_give(monkeypatch):
    solvers, seeds, labels = [euler(1.5), euler()], [0, 1], torch.tensor([0, 1])
    cast = random_sampler(RESOLUTIONS[2], solvers, "bf16")
    assert all(any(p.dtype == torch.bfloat16 for p in net.parameters()) for net in cast.networks.values())
    monkeypatch.setattr(sampling, "cast_weights", lambda net, precision: net)
    autocast = random_sampler(RESOLUTIONS[2], solvers, "bf16")
    assert torch.equal(cast(seeds, labels), autocast(seeds, labels))
    exact = random_sampler(RESOLUTIONS[2], solvers, "fp32")(seeds, labels)
    assert 0 < (exact - cast(seeds, labels)).abs().max() < 0.1


@pytest.mark.parametrize(
    "weights, expected", [((1.0, 1.0), (5, 6)), ((1.4, 1.0), (10, 6)), ((0.0, 1.4), (10, 12)), ((1, 3), (5, 12))]
)
def test_guidance_of_weight_1_makes_one_call_a_step_and_any_other_two(weights, expected):
    solvers = [euler(weights[0]), Solver(name="heun", steps=3, guidance_scale=weights[1])]
    sampler = random_sampler(RESOLUTIONS[2], solvers)
    for count in (1, 2):
        calls = sampling.count_calls(sampler, torch.arange(count))
        assert calls == {"scale-0": expected[0], "scale-1": expected[1]}


def test_a_trace_sees_every_step_grow_to_the_final_image():
    sampler, frames = random_sampler(RESOLUTIONS[3], [euler(steps=steps) for steps in (2, 3, 4)]), []
    images = sampler([0, 1], torch.tensor([0, 1]), lambda caption, picture: frames.append((caption, picture)))
    assert [caption for caption, _ in frames] == ["4 px"] * 2 + ["6 px"] * 3 + ["8 px"] * 4
    torch.testing.assert_close(frames[-1][1], images)
    assert torch.equal(sampler([0, 1], torch.tensor([0, 1])), images), "watching changes nothing"


def test_every_batch_has_one_size_and_its_images_are_those_of_its_seeds_and_labels():
    asked = []

    def sampler(seeds: list[int], labels: Tensor) -> Tensor:
        asked.append(len(seeds))
        return torch.stack([torch.tensor(seeds), labels], 1).view(-1, 2, 1, 1) / 255

    found = torch.cat(list(sampling.generate(sampler, [5, 6, 7, 8, 9], torch.tensor([0, 1, 2, 3, 4]), 3)))
    assert asked == [3, 3]
    assert found.flatten(1).tolist() == [[5, 0], [6, 1], [7, 2], [8, 3], [9, 4]]
