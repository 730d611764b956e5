"""WMGM's networks match the released code layer by layer; the inputs of its score models; its sampling."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from multiscale.condition import Classes
from multiscale.core.streams import Draws, noise_of_seeds
from multiscale.guidance import concatenated
from multiscale.methods.wmgm import sampler as wmgm_sampler
from multiscale.methods.wmgm import score
from multiscale.methods.wmgm.attention_unet import AttentionUNet, Discriminator
from multiscale.methods.wmgm.parts import build_part
from multiscale.methods.wmgm.score import ScoreSolver
from multiscale.methods.wmgm.settings import CoarsePart, WMGMMethod

CLASSES, COUNT = 3, 24
SEEDS, LABELS = [1, 2, 3, 4], torch.tensor([0, 1, 2, 0])
BETA = (0.1, 20.0)


def awake(net: nn.Module) -> nn.Module:
    """The network with random weights and running averages."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if value.is_floating_point():
                made = 0.3 * torch.randn(value.shape, generator=random)
                value.copy_(made.abs() + 0.5 if name.endswith("running_var") else made)
    return net.eval()


class Layers:
    """Layers by the names of a network's weights."""

    def __init__(self, net: nn.Module):
        self.weights = net.state_dict()

    def conv(self, name: str, x: Tensor, stride: int = 1) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        return F.conv2d(x, weight, self.weights.get(f"{name}.bias"), stride, padding=weight.shape[-1] // 2)

    def norm(self, name: str, x: Tensor) -> Tensor:
        """Batch norm by its running averages if it has any, otherwise group norm of at most eight groups."""
        w = {key: self.weights.get(f"{name}.{key}") for key in ("weight", "bias", "running_mean", "running_var")}
        if w["running_mean"] is None:
            groups = x.unflatten(1, (math.gcd(8, x.shape[1]), -1))
            mean, var = groups.mean((2, 3, 4), keepdim=True), groups.var((2, 3, 4), correction=0, keepdim=True)
            x = ((groups - mean) / (var + 1e-5).sqrt()).flatten(1, 2)
        else:
            x = (x - w["running_mean"].view(-1, 1, 1)) / (w["running_var"].view(-1, 1, 1) + 1e-5).sqrt()
        return x * w["weight"].view(-1, 1, 1) + w["bias"].view(-1, 1, 1)

    def block(self, name: str, x: Tensor) -> Tensor:
        h = leaky(self.norm(f"{name}.layers.1", self.conv(f"{name}.layers.0", x)))
        h = self.norm(f"{name}.layers.4", self.conv(f"{name}.layers.3", h))
        return leaky(h + self.conv(f"{name}.shortcut", x))

    def gate(self, name: str, g: Tensor, x: Tensor) -> Tensor:
        of_g, of_x = (
            self.norm(f"{name}.{which}.1", self.conv(f"{name}.{which}.0", y))
            for which, y in (("of_decoder", g), ("of_skip", x))
        )
        inner = (of_g + of_x).clamp(min=0)
        return x / (1 + torch.exp(-self.norm(f"{name}.map.1", self.conv(f"{name}.map.0", inner))))


def leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.1 * x)


def pooled(x: Tensor) -> Tensor:
    return x.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).amax((-1, -3))


@pytest.mark.parametrize("norm, head", [("batch", "tanh"), ("group", "linear")])
def test_the_generator_is_the_released_code_written_out(norm, head):
    net = awake(AttentionUNet(4, 6, [8, 12, 16], norm, head))
    layers, x = Layers(net), torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    one = layers.block("encoder.0", x)
    two = layers.block("encoder.1", pooled(one))
    h = layers.block("encoder.2", pooled(two))
    for level, skip in enumerate((two, one)):
        h = layers.block(f"decoder.{level}", F.interpolate(h, scale_factor=2.0, mode="bilinear"))
        h = torch.cat([layers.gate(f"gates.{level}", h, skip), h], 1)
    wanted = layers.conv("head", layers.block("last", h))
    wanted = torch.tanh(wanted) if head == "tanh" else wanted
    with torch.no_grad():
        torch.testing.assert_close(net(x), wanted, rtol=1e-4, atol=1e-5)
    assert 0.05 < wanted.std() and wanted.shape == (3, 6, 8, 8)


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_the_discriminator_is_the_released_code_written_out(norm):
    net = awake(Discriminator(3, 8, 2, norm, 0.0))
    layers, x = Layers(net), torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    h = leaky(layers.norm("stem.1", layers.conv("stem.0", x)))
    for index in range(2):
        at = f"blocks.{index}"
        inner = leaky(layers.norm(f"{at}.layers.1", layers.conv(f"{at}.layers.0", h)))
        inner = layers.norm(f"{at}.layers.4", layers.conv(f"{at}.layers.3", inner, stride=2))
        h = leaky(inner + layers.norm(f"{at}.shortcut.1", layers.conv(f"{at}.shortcut.0", h, stride=2)))
    h = leaky(h.mean((2, 3)) @ net.hidden.weight.T + net.hidden.bias)
    with torch.no_grad():
        torch.testing.assert_close(net(x), (h @ net.logit.weight.T + net.logit.bias)[:, 0], rtol=1e-4, atol=1e-5)
    assert h.std() > 0.05


class Recorder(nn.Module):
    """Replaces a score network: records its inputs, and predicts zero noise."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        self.calls.append((x, t, labels))
        return torch.zeros_like(x[:, :3])


def test_both_halves_of_a_guided_batch_get_the_condition_of_their_image():
    net, image = Recorder(), torch.arange(4.0).view(4, 1, 1, 1).expand(4, 2, 4, 4)
    solver = ScoreSolver(name="ode-euler", steps=2, guidance_scale=2.0)
    network, condition = concatenated(net, image), Classes(CLASSES)(LABELS)
    score.solve(network, condition, SEEDS, "details-1", (3, 4, 4), solver, torch.device("cpu"))
    for x, _, labels in net.calls:
        assert torch.equal(x[:, 3:], torch.cat([image, image]))
        assert torch.equal(x[:4, :3], x[4:, :3])
        assert torch.equal(labels, torch.cat([LABELS, torch.full((4,), CLASSES)]))


@pytest.fixture
def pixels(tmp_path) -> Tensor:
    """Images as the stage `decompose` writes them, the data of SGM."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (COUNT, 2, 8, 8), generator=random, dtype=torch.uint8)
    images[:, 1] //= 3
    save_file({"pixels": images, "label": torch.arange(COUNT) % CLASSES}, tmp_path / "targets.safetensors")
    (tmp_path / "statistics.json").write_text(json.dumps({"classes": CLASSES}))
    return images


def coarse_part(folder, **changes):
    network = {"width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [], "heads": 2, "groups": 4}
    about = {"method": "sgm", "kind": "wmgm", "dataset": "pixels", "role": "coarse", "network": network}
    part = build_part("coarse", CoarsePart.model_validate(about | {"training": {"images": 8}} | changes), folder)
    awake(part.networks["net"].unet)
    return part


def factors(t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """alpha, sigma and beta of the variance-preserving SDE at times (N,), in double precision."""
    t = t.double().view(-1, 1, 1, 1)
    alpha = torch.exp(-0.5 * (BETA[0] * t + 0.5 * (BETA[1] - BETA[0]) * t**2))
    return alpha, (1 - alpha**2).sqrt(), BETA[0] + (BETA[1] - BETA[0]) * t


def moments(pixels: Tensor) -> tuple[Tensor, Tensor]:
    x = pixels.double() / 255
    return x.mean((0, 2, 3)).view(1, -1, 1, 1), x.std((0, 2, 3), correction=0).view(1, -1, 1, 1)


@pytest.mark.parametrize("snr_cap", [None, 5.0])
def test_the_coarse_band_is_learnt_whitened_with_its_classes_some_dropped(snr_cap, pixels, tmp_path):
    """The error of a network that finds no noise: the velocity's, or min(SNR, cap) times that of the data."""
    part = coarse_part(tmp_path, snr_cap=snr_cap)
    net, size = Recorder(), 2400
    rows = torch.arange(size) % COUNT
    draws = Draws(0, "part", 0, size, slice(0, size), torch.device("cpu"))
    net.forward = lambda x, t, labels: net.calls.append((x, t, labels)) or torch.zeros_like(x)
    loss, _ = part.loss("net", {"net": net}, part.data[rows], draws)
    ((x, t, labels),) = net.calls
    mean, std = moments(pixels)
    alpha, sigma, _ = factors(t)
    noise = (x - alpha * ((pixels[rows].double() / 255 - mean) / std)) / sigma
    assert noise.var().item() == pytest.approx(1, abs=0.02) and noise.mean().abs() < 0.02
    snr = (alpha / sigma) ** 2
    weight = alpha**-2 if snr_cap is None else snr.clamp_max(snr_cap) / snr
    assert loss.item() == pytest.approx((weight * noise.square()).mean().item(), rel=1e-3)
    dropped = labels == CLASSES
    assert dropped.float().mean().item() == pytest.approx(0.1, abs=0.02)
    assert torch.equal(labels[~dropped], rows[~dropped] % CLASSES)


def test_the_coarse_band_is_sampled_by_the_reverse_sde_and_coloured_again(pixels, tmp_path):
    """x + h beta (x / 2 - eps / sigma) + sqrt(h beta) z under guidance; the last step removes the noise."""
    part = coarse_part(tmp_path)
    net = part.networks["net"]
    part.save(tmp_path)
    steps, weight = 5, 1.5
    solver = ScoreSolver(name="euler-maruyama", steps=steps, guidance_scale=weight)
    sampler = wmgm_sampler.load_sampler([tmp_path], WMGMMethod(kind="wmgm", solver=solver), None, "fp32")
    images = sampler(SEEDS, LABELS)
    x = noise_of_seeds(SEEDS, "low", (2, 8, 8)).double()
    with torch.no_grad():
        for k in range(steps):
            t = torch.full((4,), 1 - k / steps)
            alpha, sigma, beta = factors(t)
            given, free = (net(x.float(), t, labels).double() for labels in (LABELS, torch.full((4,), CLASSES)))
            eps = free + weight * (given - free)
            if k == steps - 1:
                x = (x - sigma * eps) / alpha
            else:
                z = noise_of_seeds(SEEDS, f"low/{k}", (2, 8, 8))
                x = x + beta / steps * (x / 2 - eps / sigma) + (beta / steps).sqrt() * z
    mean, std = moments(pixels)
    wanted = x * std + mean
    assert wanted.min() < -0.01 or wanted.max() > 1.01, "images are clipped"
    torch.testing.assert_close(images.double(), wanted.clamp(0, 1), rtol=0, atol=1e-3)
    assert images.std() > 0.05
