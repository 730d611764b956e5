"""Flexi-UNet: published sizes and costs; runs only the levels in use; with one level it is the plain UNet."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import replace
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from multiscale.methods.ssd.process import ScaleSpaceProcess
from multiscale.networks import unet
from multiscale.networks.unet import PRESETS, FlexiUNet, UNetNetwork

SMALL = UNetNetwork.model_validate({"preset": "SSD-64", "width": 8, "groups": 4})


def resolution_of(name: str) -> int:
    return int(name.partition("-")[2])


def preset(name: str, levels: int | None = None, top_block: bool = True) -> FlexiUNet:
    """A published network on the meta device, with the top block as in its checkpoints."""
    size = UNetNetwork.model_validate({"preset": name, "top_block": top_block})
    with torch.device("meta"):
        return size.build(3, resolution_of(name), levels or len(size.multipliers))


def small(levels: int = 4, resolution: int = 64, classes: int = 0, **changes) -> FlexiUNet:
    """The 64-pixel network at a sixteenth of its width, with its zero layers randomised."""
    torch.manual_seed(0)
    net = replace(SMALL, **changes).build(3, resolution, levels, classes)
    for parameter in net.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return net


def parameters(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def flops(net: FlexiUNet, resolution: int, out_resolution: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        net(torch.empty(1, 3, resolution, resolution), torch.empty(1), None, out_resolution)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "count", "adapters"),
    [("SSD-64", 92_256_131, 230_400), ("SSD-128", 95_228_163, 230_400), ("SSD-256", 124_250_883, 197_632)],
)
def test_the_published_networks_have_the_published_parameter_counts(name, count, adapters):
    net = preset(name)
    assert parameters(net) == count
    assert sum(parameters(part) for part in (net.adapt_in, net.adapt_out)) == adapters
    assert parameters(preset(name, levels=1)) == count - adapters
    assert parameters(preset(name, top_block=False)) == count - 607_616


def test_levels_of_one_width_share_their_adapter():
    def shapes(adapters):
        return [tuple(layer.weight.shape[:2]) for layer in adapters.values()]

    net = preset("SSD-256")
    assert shapes(net.adapt_in) == [(256, 128), (512, 128)]
    assert shapes(net.adapt_out) == [(128, 256), (128, 512)]
    assert shapes(preset("SSD-64").adapt_in) == [(256, 128), (384, 128)]
    assert shapes(preset("SSD-64", levels=2).adapt_in) == []  # what is never used is not built


PUBLISHED_GFLOPS = {
    "SSD-64": {1: 60.05, 2: 50.61, 3: 44.27, 4: 38.48},
    "SSD-128": {1: 132.30, 3: 87.38, 5: 66.72},
    "SSD-256": {1: 497.03, 3: 317.36, 4: 272.98, 5: 237.70, 6: 209.69},
}


@pytest.mark.parametrize("name", PUBLISHED_GFLOPS)
def test_the_published_networks_cost_the_published_gflops(name, monkeypatch):
    # The published figures leave the attention's two products out.
    monkeypatch.setattr(unet, "attention", lambda q, k, v: v)
    resolution = resolution_of(name)
    flexible, plain = preset(name), preset(name, levels=1)
    costs: dict[tuple[int, int], int] = {}
    for levels, published in PUBLISHED_GFLOPS[name].items():
        process = ScaleSpaceProcess(levels=levels).build(resolution)
        steps = [(process.resolution(t), process.resolution(t - 1)) for t in range(1000)]
        for resolutions in set(steps) - costs.keys():
            costs[resolutions] = flops(flexible, *resolutions)
        total = (
            1000 * flops(plain, resolution, resolution)
            if levels == 1
            else sum(costs[resolutions] for resolutions in steps)
        )
        assert total / 1000 / 1e9 == pytest.approx(published, abs=0.01)


def test_a_smaller_image_costs_less_attention_included():
    net = preset("SSD-64")
    gmac = {(64, 64): 28.36, (32, 32): 17.21, (16, 16): 8.14, (8, 8): 2.52, (16, 32): 14.92, (8, 16): 6.37}
    for resolutions, published in gmac.items():
        assert flops(net, *resolutions) / 2e9 == pytest.approx(published, abs=0.006)
    assert flops(preset("SSD-64", levels=1), 64, 64) / 2e9 == pytest.approx(30.30, abs=0.006)


@torch.no_grad()
def test_every_pair_of_resolutions_gives_the_resolution_asked_for_and_the_same_in_channels_last():
    net, t = small(), torch.tensor([3, 900])
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    for resolution in net.resolutions:
        for out_resolution in [out for out in net.resolutions if out >= resolution]:
            x = torch.randn(2, 3, resolution, resolution)
            found = net(x, t, None, out_resolution)
            assert found.shape == (2, 3, out_resolution, out_resolution) and found.std() > 0.01
            again = last(x.to(memory_format=torch.channels_last), t, None, out_resolution)
            assert (again - found).abs().max() < 1e-4 * found.std()


# Decoder and encoder blocks as ADM numbers them: encoder 0 is the stem, 3, 6, 9 shrink; decoder 2, 5, 8 enlarge.
ENCODER = {0: "stem", 1: "encoder.0.0", 2: "encoder.0.1", 3: "down.0", 4: "encoder.1.0", 5: "encoder.1.1", 6: "down.1"}
ENCODER |= {7: "encoder.2.0", 8: "encoder.2.1", 9: "down.2", 10: "encoder.3.0", 11: "encoder.3.1"}
DECODER = {0: "decoder.3.0", 1: "decoder.3.1", 2: "decoder.3.2 up.2", 3: "decoder.2.0", 4: "decoder.2.1"}
DECODER |= {5: "decoder.2.2 up.1", 6: "decoder.1.0", 7: "decoder.1.1", 8: "decoder.1.2 up.0"}
DECODER |= {9: "decoder.0.0", 10: "decoder.0.1", 11: "decoder.0.2"}
# By (resolution, out_resolution): first encoder block, last decoder block, decoder blocks with a zero skip, adapters.
PATHS = {
    (64, 64): (1, 10, [], ""),
    (32, 32): (4, 7, [], "adapt_out.16"),
    (16, 16): (7, 4, [], "adapt_in.16 adapt_out.24"),
    (8, 8): (10, 1, [], "adapt_in.24 adapt_out.32"),
    (16, 32): (7, 7, [5, 6, 7], "adapt_in.16 adapt_out.16"),
    (8, 16): (10, 4, [2, 3, 4], "adapt_in.24 adapt_out.24"),
    (32, 64): (1, 10, [], ""),
}


@pytest.mark.parametrize("top_block", [False, True])
@pytest.mark.parametrize("resolutions", PATHS)
def test_only_the_levels_in_use_run_and_get_gradients(resolutions, top_block):
    net = small(top_block=top_block)
    first, last, zero_skips, adapters = PATHS[resolutions]
    without_skip = []
    for index, names in DECODER.items():
        block = dict(net.named_modules()).get(names.split()[0])
        if block is not None:
            block.register_forward_pre_hook(lambda _, inputs, index=index: without_skip.append((index, not inputs[2])))
    net(
        torch.randn(2, 3, resolutions[0], resolutions[0]), torch.tensor([5, 700]), None, resolutions[1]
    ).square().mean().backward()
    run = ["time", "middle", "norm", "head", ENCODER[0], adapters]
    run += [ENCODER[i] for i in range(first, 12)] + [DECODER[i] for i in range(last + 1)]
    used = tuple(f"{name}." for name in " ".join(run).split())
    for name, parameter in net.named_parameters():
        assert (parameter.grad is not None) == name.startswith(used), name
        assert parameter.grad is None or parameter.grad.any(), name
    assert without_skip == [(index, index in zero_skips) for index in range(last + 1)]


def test_without_the_top_block_every_parameter_is_used_by_some_step():
    net = small()
    for resolutions in PATHS:
        net(
            torch.randn(1, 3, resolutions[0], resolutions[0]), torch.tensor([5]), None, resolutions[1]
        ).mean().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_the_plain_unet_runs_its_top_block_and_takes_every_resolution_it_can_divide():
    net = small(levels=1, top_block=True)
    assert len(net.adapt_in) == len(net.adapt_out) == 0
    net(torch.randn(1, 3, 64, 64), torch.tensor([5]), None, 64).mean().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    for resolution, out_resolution in ((64, 64), (32, 32), (8, 8), (24, 24), (8, 16)):
        assert (
            net(torch.randn(1, 3, resolution, resolution), torch.tensor([5]), None, out_resolution).shape[-1]
            == out_resolution
        )


def test_one_level_and_many_make_the_same_of_a_full_image():
    flexible, plain = small(), small(levels=1)
    plain.load_state_dict({k: v for k, v in flexible.state_dict().items() if not k.startswith("adapt")})
    x, t = torch.randn(2, 3, 64, 64), torch.tensor([5, 700])
    assert torch.equal(flexible(x, t, None, 64), plain(x, t, None, 64))


def test_a_step_into_the_top_level_enlarges_the_image_first():
    net = small()
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([5, 5])
    enlarged = nn.functional.interpolate(x, scale_factor=2, mode="bilinear")
    assert torch.equal(net(x, t, None, 64), net(enlarged, t, None, 64))


def test_classes_and_times_change_the_prediction_and_one_label_means_no_class():
    net = small(classes=3)
    x = torch.randn(1, 3, 16, 16).expand(6, -1, -1, -1)
    t, labels = torch.tensor([5, 5, 5, 5, 9, 9]), torch.tensor([0, 1, 2, 3, 3, 0])
    predicted = net(x, t, labels, 16)
    assert min((a - b).abs().max().item() for i, a in enumerate(predicted) for b in predicted[:i]) > 1e-6


@pytest.mark.parametrize("name", PRESETS)
def test_a_new_network_predicts_grey(name):
    size, resolution = UNetNetwork.model_validate({"preset": name}), resolution_of(name)
    net = replace(size, width=size.groups).build(1, resolution, levels=2)
    resolution //= 2
    assert not net(torch.randn(1, 1, resolution, resolution), torch.tensor([1]), None, resolution).any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"levels": 5}, "5 levels of resolutions in a UNet of 4; allowed: 1 to 4"),
        ({"resolution": 36}, "a UNet of 4 levels cannot divide a resolution of 36; allowed: multiples of 8"),
        ({"groups": 3}, "a width of 8; allowed: multiples of groups"),
    ],
)
def test_impossible_networks_are_refused_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message):
        small(**changes)


@pytest.mark.parametrize(
    ("levels", "resolutions", "message"),
    [
        (2, (16, 16), "a resolution of 16 has no level in the UNet; allowed: 64, 32"),
        (1, (20, 20), "cannot divide a resolution of 20; allowed: multiples of 8"),
        (4, (32, 16), "from resolution 32 to the smaller 16; allowed: the same resolution or a larger one"),
    ],
)
def test_images_that_no_level_takes_are_refused_in_one_line(levels, resolutions, message):
    with pytest.raises(ValueError, match=message):
        small(levels)(torch.randn(1, 3, resolutions[0], resolutions[0]), torch.tensor([1]), None, resolutions[1])
