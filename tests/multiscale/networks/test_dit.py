"""DiT: published sizes, zero initial output, resolution-independent positions, the order of patches, cost."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from multiscale import sampling
from multiscale.core.normalisation import Normalisation
from multiscale.flow import Solver
from multiscale.methods.msf.parts import ScaleConfig
from multiscale.methods.msf.sampler import MSFSampler
from multiscale.networks import dit
from multiscale.networks.dit import Attention, DiT, DiTNetwork, position_code

NETWORK, CLASSES = DiTNetwork(depth=2, width=32, heads=2, patch=2), 3


def randomised(net: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net


@pytest.mark.parametrize(
    "preset, inputs, published", [("MSF-0", 4, 435.9e6), ("MSF-1", 8, 331.2e6), ("DiT-XL/2", 4, 674.8e6)]
)
def test_the_presets_have_the_published_number_of_parameters(preset, inputs, published):
    with torch.device("meta"):
        net = DiTNetwork(preset=preset).build(inputs, 4, classes=1000)
    assert sum(p.numel() for p in net.parameters()) == pytest.approx(published, rel=5e-4)


def test_a_new_network_gives_zero_and_its_blocks_pass_their_input_on():
    net = NETWORK.build(4, 2, CLASSES)
    x, t, labels = torch.randn(3, 4, 8, 8), torch.rand(3), torch.tensor([0, 1, 3])
    assert torch.equal(net(x, t, labels), torch.zeros(3, 2, 8, 8))
    tokens, condition = torch.randn(3, 16, 32), torch.randn(3, 32)
    for block in net.blocks:
        assert torch.equal(block(tokens, condition), tokens)
    net(x, t, labels).sum().backward()
    assert net.final.linear.weight.grad.abs().sum() > 0, "zero is where it starts, not where it stays"


def test_the_output_depends_on_state_time_and_label():
    net = randomised(NETWORK.build(2, 2, CLASSES))
    x, t, labels = torch.randn(1, 2, 8, 8), torch.tensor([0.5]), torch.tensor([0])
    one = net(x, t, labels)
    others = net(x + 0.1, t, labels), net(x, t + 0.01, labels), net(x, t, labels + 1), net(x, t, labels + 3)
    assert all((one - other).abs().max() > 1e-3 for other in others)


def test_attention_is_the_textbook_one():
    ours, theirs = Attention(24, 3), nn.MultiheadAttention(24, 3, batch_first=True)
    theirs.in_proj_weight, theirs.in_proj_bias = ours.qkv.weight, ours.qkv.bias
    theirs.out_proj = ours.proj
    x = torch.randn(2, 5, 24)
    torch.testing.assert_close(ours(x), theirs(x, x, x, need_weights=False)[0])


def test_the_code_of_a_place_does_not_depend_on_the_number_of_tokens():
    coarse, fine = position_code(4, 32).view(4, 4, 32), position_code(12, 32).view(12, 12, 32)
    torch.testing.assert_close(fine[1::3, 1::3], coarse)  # the middle one of 3x3 small tokens has the large one's place
    assert len(position_code(12, 32).unique(dim=0)) == 144, "and every place has its own"
    assert torch.equal(coarse[2, :, :16], coarse[2, :1, :16].expand(4, 16)), "half tells the row, half the column"
    assert torch.equal(coarse[:, 2, 16:], coarse[:1, 2, 16:].expand(4, 16))


def test_neighbours_of_a_16x16_grid_are_one_apart_as_in_the_published_code():
    code = position_code(16, 8)[:16, 4:]  # the first row's column half: sines, then cosines
    phase = torch.atan2(code[:, 0], code[:, 2])
    torch.testing.assert_close(phase.diff() % (2 * torch.pi), torch.ones(15), rtol=0, atol=1e-5)


def test_one_network_serves_several_resolutions():
    net = randomised(NETWORK.build(2, 2, CLASSES))
    assert not any("position" in name for name in net.state_dict())
    small, large = torch.full((1, 2, 4, 4), 0.5), torch.full((1, 2, 12, 12), 0.5)
    t, labels = torch.tensor([0.5]), torch.tensor([1])
    assert net(small, t, labels).shape == small.shape and net(large, t, labels).shape == large.shape
    net.blocks = nn.ModuleList()  # without attention a token knows its place alone
    places = net(large, t, labels).unflatten(3, (6, 2)).unflatten(2, (6, 2))  # (1, 2, rows, 2, columns, 2)
    here = net(small, t, labels).unflatten(3, (2, 2)).unflatten(2, (2, 2))
    torch.testing.assert_close(places[:, :, 1::3, :, 1::3], here)


class Keep(nn.Module):
    """Replaces the final layer, and returns all tokens or one."""

    only: int | None = None

    def forward(self, x, condition):
        mask = torch.zeros(x.shape[1]).index_fill(0, torch.tensor(self.only), 1) if self.only is not None else 1
        return x * (mask.view(-1, 1) if self.only is not None else 1)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_patches_go_back_to_where_they_came_from(patch, monkeypatch):
    monkeypatch.setattr(dit, "position_code", lambda grid, width, device: torch.zeros(grid * grid, width))
    net = DiT(3, 3, depth=0, width=3 * patch**2, heads=1, patch=patch, classes=1)
    net.patches.weight.data = torch.eye(3 * patch**2)
    net.final = Keep()
    x, t, labels = torch.randn(2, 3, 8, 8), torch.zeros(2), torch.zeros(2, dtype=torch.long)
    assert torch.equal(net(x, t, labels), x)
    columns = 8 // patch
    net.final.only = columns + 1  # tokens are counted row by row, as the positions are
    expected = torch.zeros_like(x)
    place = (..., slice(patch, 2 * patch), slice(patch, 2 * patch))
    expected[place] = x[place]
    assert torch.equal(net(x, t, labels), expected)


class Pixels(nn.Module):
    """A codec without FLOPs."""

    def decode(self, latents):
        return latents


def hand_count(inputs: int, outputs: int, resolution: int, depth: int, width: int, patch: int) -> int:
    """FLOPs of one DiT evaluation, two for each multiply-add; T = (resolution / patch)^2 tokens, D width, p patch.

    tokens      2 T (inputs p^2 D + D outputs p^2)
    condition   2 (256 D + D^2 + 2 D^2)                           time MLP; modulation of the final layer
    a block     2 (6 D^2 + T (3 D^2 + D^2 + 8 D^2) + 2 T^2 D)     modulation; qkv, projection, MLP; q k^T, weights v
    """
    T, D, area = (resolution // patch) ** 2, width, patch**2
    block = 6 * D * D + T * 12 * D * D + 2 * T * T * D
    return 2 * (T * D * area * (inputs + outputs) + 256 * D + 3 * D * D + depth * block)


@pytest.mark.parametrize("guidance_scale", [1.0, 1.5])
def test_the_flops_of_an_image_are_those_of_a_hand_count(guidance_scale):
    steps, size = [3, 2], {"depth": NETWORK.depth, "width": NETWORK.width, "patch": NETWORK.patch}
    unit = Normalisation(shift=[0.0] * 4, scale=[1.0] * 4)
    configs = [
        ScaleConfig(index=k, resolutions=[6, 8], target=unit, latent=unit, classes=CLASSES, network=NETWORK)
        for k in range(2)
    ]
    solvers = [Solver(steps=steps[0], guidance_scale=guidance_scale), Solver(steps=steps[1])]
    nets = [randomised(config.build()) for config in configs]
    sampler = MSFSampler(nets, configs, solvers, Pixels(), "fp32")
    calls = steps[0] * (1 if guidance_scale == 1 else 2), steps[1]
    expected = calls[0] * hand_count(4, 4, 6, **size) + calls[1] * hand_count(8, 4, 8, **size)
    assert sampling.flops_per_image(sampler, torch.tensor([1])) == expected
