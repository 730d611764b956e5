"""The published networks give what diffusers' own forward, schedulers and pipelines give."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_published import BLOCKS, NETWORKS, built, given
from torch.utils.flop_counter import FlopCounterMode

from multiscale.core.compat import without_pipelines
from multiscale.core.device import cast_weights
from multiscale.core.models import ForeignModel
from multiscale.flow import interpolate
from multiscale.methods.swd.schedule import Schedule
from multiscale.networks.autoencoder import build
from multiscale.networks.published.flux import FluxNetwork
from multiscale.networks.published.network import normalisation
from multiscale.networks.published.sd3 import SD3Network
from multiscale.networks.published.sdxl import SDXLNetwork, levels, timesteps

FAMILIES = pytest.mark.parametrize("family", NETWORKS)


def own(family: str, net, x, t, prompt, pooled):
    """The output of diffusers' forward, called as its pipelines do: timesteps, packed latents, the picture's size."""
    if family == "sd3":
        return net(x, encoder_hidden_states=prompt, pooled_projections=pooled, timestep=1000 * t).sample
    if family == "flux":
        N, C, h, _ = x.shape
        packed = x.view(N, C, h // 2, 2, h // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(N, h * h // 4, 4 * C)
        ids = torch.zeros(h // 2, h // 2, 3)
        ids[..., 1] += torch.arange(h // 2)[:, None]
        ids[..., 2] += torch.arange(h // 2)[None]
        out = net(
            packed,
            encoder_hidden_states=prompt,
            pooled_projections=pooled,
            timestep=t,
            img_ids=ids.reshape(-1, 3),
            txt_ids=torch.zeros(prompt.shape[1], 3),
            guidance=torch.full([1], 4.5).expand(N),
        ).sample
        return out.view(N, h // 2, h // 2, C, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(N, C, h, h)
    added = {"text_embeds": pooled, "time_ids": torch.tensor([[128.0, 128, 0, 0, 128, 128]]).expand(len(x), -1)}
    return net(x, t, encoder_hidden_states=prompt, added_cond_kwargs=added).sample


@pytest.mark.parametrize("family", ["sd3", "flux"])
@pytest.mark.parametrize("resolution", [8, 16])
def test_the_velocity_of_a_flow_is_what_diffusers_gives(family, resolution):
    net = built(family)
    with torch.no_grad():
        assert torch.equal(net(*given(resolution=resolution)), own(family, net.net, *given(resolution=resolution)))


@pytest.fixture(scope="module")
def process():
    """SDXL's process in diffusers, with its published settings."""
    with without_pipelines():
        from diffusers.schedulers import DDPMScheduler
    return DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False)


@pytest.mark.parametrize("step", [0, 399, 600, 999])
def test_sdxls_process_is_a_flow_in_other_units(step, process):
    """The clean picture that the flow's velocity stands for is diffusers', of the same noisy picture."""
    net, (x, _, prompt, pooled) = built("sdxl"), given()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    noisy, t = process.add_noise(x, noise, torch.tensor([step, step])), levels()[[step, step]].float()
    flow = interpolate(x, noise, t)
    with torch.no_grad():
        predicted = own("sdxl", net.net, noisy, torch.tensor([step, step]), prompt, pooled)
        clean = flow - t.view(-1, 1, 1, 1) * net(flow, t, prompt, pooled)
    wanted = process.step(predicted, step, noisy).pred_original_sample
    torch.testing.assert_close(clean, wanted, atol=2e-4, rtol=1e-4)


def test_pure_noise_is_for_sdxl_the_last_timestep_as_in_its_samplers(process):
    net, (noise, t, prompt, pooled) = built("sdxl"), given()
    with torch.no_grad():
        clean = noise - net(noise, torch.ones_like(t), prompt, pooled)
        predicted = own("sdxl", net.net, noise, torch.tensor([999, 999]), prompt, pooled)
    torch.testing.assert_close(clean, process.step(predicted, 999, noise).pred_original_sample, atol=2e-4, rtol=1e-4)


def test_sdxls_levels_are_its_timesteps_and_what_lies_between_them_is_between(process):
    torch.testing.assert_close(timesteps(levels()), torch.arange(1000.0), atol=1e-4, rtol=0)
    halfway = (levels()[:-1] + levels()[1:]) / 2
    torch.testing.assert_close(timesteps(halfway), torch.arange(999) + 0.5, atol=1e-4, rtol=0)
    assert timesteps(torch.tensor([0.0, 0.01, 0.95, 1.0])).tolist() == [0, 0, 999, 999]
    kept = process.alphas_cumprod.double()
    torch.testing.assert_close(levels(), 1 / (1 + (kept / (1 - kept)).sqrt()), atol=1e-6, rtol=0)


def test_sdxls_schedule_is_that_of_the_paper_in_other_units(process):
    """Timesteps 1000, 800, 600, 400: the first is pure noise, of the others the process says how much."""
    known = Schedule.model_validate({"preset": "SDXL"})
    kept = process.alphas_cumprod[[800, 600, 400]].sqrt()
    noise = (1 - kept**2).sqrt()
    assert known.sigmas == pytest.approx([1.0, *(noise / (kept + noise)).tolist()], abs=1e-4)
    assert known.resolutions == [512, 640, 768, 1024]


def test_sdxls_velocity_and_its_gradient_at_the_ends_of_the_flow_are_those_beside_them():
    net, (x, _, prompt, pooled) = built("sdxl"), given()
    x.requires_grad_()
    ends = []
    for t in ([0.0, 1.0], [1e-4, 1 - 1e-4]):
        velocity = net(x, torch.tensor(t), prompt, pooled)
        ends.append((velocity, *torch.autograd.grad(velocity.square().sum(), x)))
    for whole, near in zip(*ends):
        for at, beside in zip(whole, near):  # at t = 0 and at t = 1
            assert (at - beside).abs().max() < 2e-3 * at.std()


def layers(family: str, net) -> list[torch.nn.Module]:
    """All blocks of a network of diffusers, in order."""
    if family == "sdxl":
        return [*net.down_blocks, net.mid_block, *net.up_blocks]
    return [*net.transformer_blocks, *getattr(net, "single_transformer_blocks", ())]


@FAMILIES
@torch.no_grad()
def test_tokens_are_the_images_after_a_block_of_diffusers_own_forward(family):
    net, kept = built(family), []
    layers(family, net.net)[BLOCKS[family]].register_forward_hook(lambda module, args, out: kept.append(out))
    x, t, prompt, pooled = given()
    if family == "sdxl":  # diffusers takes a timestep, and a picture of unit variance
        steps = (999 * t).long()
        own(family, net.net, x, steps, prompt, pooled)
        wanted, t = kept[0].flatten(2).transpose(1, 2), levels()[steps].float()
        x = x * torch.hypot(1 - t, t).view(-1, 1, 1, 1)
    else:
        own(family, net.net, x, t, prompt, pooled)
        wanted = kept[0][1]
    velocity, tokens = net(x, t, prompt, pooled, BLOCKS[family])
    torch.testing.assert_close(tokens, wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(velocity, net(x, t, prompt, pooled))
    assert torch.equal(net(x, t, prompt, pooled, BLOCKS[family], stop=True), tokens)


@FAMILIES
@torch.no_grad()
def test_no_later_block_runs_for_tokens_alone(family):
    net, block = built(family), BLOCKS[family]
    counts = []
    for options in ({}, {"block": block, "stop": True}):
        with FlopCounterMode(display=False) as counter:
            net(*given(), **options)
        counts.append({name: sum(flops.values()) for name, flops in counter.get_flop_counts().items()})
    names = {module: name for name, module in net.named_modules()}
    total, stopped = counts
    later = [f"{type(net).__name__}.{names[layer]}" for layer in layers(family, net.net)[block + 1 :]]
    assert later and all(total[name] and name not in stopped for name in later)
    last = ("conv_out",) if family == "sdxl" else ("proj_out", "norm_out")
    later += [f"{type(net).__name__}.net.{name}" for name in last]
    assert stopped["Global"] == total["Global"] - sum(total[name] for name in later)


@torch.no_grad()
def test_a_low_resolution_sees_the_positions_of_the_middle_of_a_high_one():
    """diffusers crops SD3's table, so a teacher makes a crop of the picture at a low resolution."""
    net, seen = built("sd3"), []
    net.net.pos_embed.register_forward_hook(lambda module, args, out: seen.append(out))
    for edge in (16, 8):
        x, t, prompt, pooled = given(resolution=edge)
        net(torch.zeros_like(x), t, prompt, pooled)
    high, low = seen[0].view(2, 8, 8, 16), seen[1].view(2, 4, 4, 16)
    assert torch.equal(low, high[:, 2:6, 2:6]) and not torch.allclose(low, high[:, :4, :4])
    table = net.net.pos_embed.pos_embed.view(12, 12, 16)  # of 12 x 12 tokens
    torch.testing.assert_close(low[0], table[4:8, 4:8] + net.net.pos_embed.proj.bias)


@torch.no_grad()
def test_positions_of_the_whole_picture_are_the_same_places_at_each_resolution():
    """By hand: of 12 places on an edge, 4 tokens lie in the middle of three each, 6 between two; a line of places shows
    it, since between neighbours it is what lies between them.
    """
    net = NETWORKS["sd3"].model_copy(update={"positions": "whole"}).build()
    line = torch.arange(12.0).view(1, 12, 1).expand(12, 12, 16)  # the column of each place
    net.net.pos_embed.pos_embed = line.reshape(1, 144, 16)
    net.net.pos_embed.proj.bias.zero_()
    for edge, places in ((4, [1.0, 4.0, 7.0, 10.0]), (6, [0.5, 2.5, 4.5, 6.5, 8.5, 10.5]), (12, list(range(12)))):
        tokens = net._patches(torch.zeros(1, 4, 2 * edge, 2 * edge)).view(edge, edge, 16)
        torch.testing.assert_close(tokens, torch.tensor(places).float().view(1, edge, 1).expand(edge, edge, 16))


@torch.no_grad()
def test_a_network_that_is_trained_here_starts_as_dits():
    """No velocity, and blocks that pass the tokens of the image and of the text on as they are."""
    net = built("sd3")
    net.initialise()
    x, t, prompt, pooled = given()
    velocity, tokens = net(x, t, prompt, pooled, block=2)
    assert torch.equal(velocity, torch.zeros_like(x)) and torch.equal(tokens, net.net.pos_embed(x))
    weight = net.net.transformer_blocks[0].attn.to_q.weight
    assert 0.95 < weight.abs().max() / (6 / 32) ** 0.5 <= 1  # Glorot & Bengio 2010 (16): 16 channels in, 16 out


def gradients(net, *inputs, **options) -> list[torch.Tensor]:
    x, *rest = inputs
    x = x.clone().requires_grad_()
    out = net(x, *rest, **options)
    return torch.autograd.grad(out.square().sum(), [x, *net.parameters()], allow_unused=True)


@FAMILIES
@pytest.mark.parametrize("stop", [False, True])
def test_recomputed_activations_give_the_same_gradients(family, stop):
    net, calls = built(family), []
    layer = layers(family, net.net)[0]
    inner = layer.resnets[0] if family == "sdxl" else layer  # which diffusers recomputes in a U-Net
    options = {"block": BLOCKS[family], "stop": True} if stop else {}
    wanted = gradients(net, *given(), **options)
    inner.register_forward_pre_hook(lambda module, args: calls.append(1))
    net.recompute()
    found = gradients(net, *given(), **options)
    assert len(calls) == 2
    for one, two in zip(found, wanted):
        assert (one is None) == (two is None)
        assert one is None or torch.allclose(one, two, atol=1e-6, rtol=1e-6)


@FAMILIES
@torch.no_grad()
def test_weights_cast_once_to_bf16_give_what_autocast_gives(family):
    whole = built(family)(*given())
    with torch.autocast("cpu", torch.bfloat16):
        wanted, found = built(family)(*given()), cast_weights(built(family), "bf16")(*given())
    assert torch.equal(wanted, found)
    pure = built(family).to(torch.bfloat16)(*given())
    for low in (found, pure):
        assert (low.float() - whole).abs().mean() < 0.1 * whole.abs().mean()


@pytest.mark.slow
@torch.no_grad()
def test_a_compiled_network_is_one_graph():
    net = built("sd3")
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*given()), net(*given()))


@pytest.mark.parametrize(
    ("network", "parameters"),
    [
        (SD3Network.model_validate({"preset": "SD3.5-M"}), 2_243_171_520),
        (SD3Network.model_validate({"preset": "SD3.5-L"}), 8_056_627_520),
        (FluxNetwork.model_validate({"preset": "FLUX.1-dev"}), 11_901_408_320),
        (SDXLNetwork.model_validate({"preset": "SDXL"}), 2_567_463_684),
    ],
)
def test_the_published_networks_have_the_published_parameters(network, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in network.build().parameters()) == parameters


# What the published folders hold, without the keys that say who wrote them.
CONFIGS = {
    "SD3.5-M": {
        "_class_name": "SD3Transformer2DModel",
        "attention_head_dim": 64,
        "caption_projection_dim": 1536,
        "dual_attention_layers": [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
        "in_channels": 16,
        "joint_attention_dim": 4096,
        "num_attention_heads": 24,
        "num_layers": 24,
        "out_channels": 16,
        "patch_size": 2,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 384,
        "qk_norm": "rms_norm",
        "sample_size": 128,
    },
    "FLUX.1-dev": {
        "_class_name": "FluxTransformer2DModel",
        "attention_head_dim": 128,
        "guidance_embeds": True,
        "in_channels": 64,
        "joint_attention_dim": 4096,
        "num_attention_heads": 24,
        "num_layers": 19,
        "num_single_layers": 38,
        "patch_size": 1,
        "pooled_projection_dim": 768,
    },
}


@pytest.mark.parametrize(("kind", "name"), [(SD3Network, "SD3.5-M"), (FluxNetwork, "FLUX.1-dev")])
def test_a_published_config_is_its_preset(kind, name, tmp_path):
    (tmp_path / "transformer").mkdir()
    (tmp_path / "transformer" / "config.json").write_text(json.dumps(CONFIGS[name]))
    assert kind.of(tmp_path) == kind.model_validate({"preset": name})


@FAMILIES
def test_weights_are_read_from_the_folder_of_a_pipeline(family, tmp_path):
    net, network = built(family), NETWORKS[family]
    net.net.save_pretrained(tmp_path / net.folder)
    assert network.of(tmp_path).numbers() == network.numbers()
    with torch.no_grad():
        assert torch.equal(network.load(tmp_path).eval()(*given()), net(*given()))
    assert {p.dtype for p in network.load(tmp_path, torch.bfloat16).parameters()} == {torch.bfloat16}


# Of SD3.5, FLUX.1 and SDXL (vae/config.json).
@pytest.mark.parametrize(("shift", "scaling"), [(0.0609, 1.5305), (0.1159, 0.3611), (None, 0.13025)])
def test_latents_are_shifted_and_scaled_as_the_autoencoders_config_says(shift, scaling):
    vae = build(1, 4, (4,), 1, 2)
    vae.register_to_config(shift_factor=shift, scaling_factor=scaling)
    z = given()[0]
    wanted = (z - (shift or 0)) * scaling  # as in the pipelines
    torch.testing.assert_close(normalisation(vae.config).apply(z), wanted, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(normalisation(vae.config).undo(wanted), z, atol=1e-6, rtol=1e-6)


def refusal(call, *given) -> str:
    with pytest.raises(ForeignModel) as caught:
        call(*given)
    assert "\n" not in str(caught.value) and "; allowed: " in str(caught.value)
    return str(caught.value)


def test_a_folder_without_the_network_is_refused_in_one_line(tmp_path):
    network, net = NETWORKS["sd3"], built("sd3").net
    told = refusal(network.load, tmp_path)
    assert told.startswith(f"{tmp_path}/transformer/config.json: No such file") and "hf download" in told
    place = tmp_path / "transformer"
    net.save_config(place)
    assert f"{place}: holds no safetensors" in refusal(network.load, tmp_path)
    net.save_pretrained(place)
    weights = load_file(place / "diffusion_pytorch_model.safetensors")
    bias = weights.pop("proj_out.bias")
    for broken in (weights, weights | {"proj_out.bias": bias[:-1]}):
        save_file(broken, place / "diffusion_pytorch_model.safetensors", {"format": "pt"})
        assert f"{place}: " in (told := refusal(network.load, tmp_path)) and "proj_out.bias" in told
    net.save_pretrained(place)
    other = network.model_validate(network.model_dump() | {"num_layers": 2})
    assert "num_layers: 3 is not allowed; allowed: 2" in refusal(other.load, tmp_path)
    assert "_class_name: 'SD3Transformer2DModel'" in refusal(FluxNetwork.of, tmp_path)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | {"num_layers": "many"}))
    assert "num_layers: 'many' is not allowed" in refusal(network.load, tmp_path)
