"""Networks, samplers and adapters agree with those of diffusers and peft for the same weights."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from multiscale import flow
from multiscale.core.compat import make_torchvision_importable
from multiscale.core.streams import noise_of_seeds
from multiscale.methods.msf import parts as msf_parts
from multiscale.methods.msf import sampler as msf_sampler
from multiscale.methods.swd import sampler as swd_sampler
from multiscale.methods.swd.adapter import Beneath, adapted, merged
from multiscale.methods.swd.config import StudentConfig
from multiscale.methods.wmgm import score
from multiscale.methods.wmgm.score import VP
from multiscale.networks.autoencoder import Codec
from multiscale.networks.dit import DiT, TimestepEmbedder, position_code
from multiscale.networks.unet import FlexiUNet, UNetNetwork

make_torchvision_importable()
from diffusers import (  # noqa: E402
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    FlowMatchLCMScheduler,
)
from diffusers.models import DiTTransformer2DModel, UNet2DModel  # noqa: E402
from diffusers.models.embeddings import TimestepEmbedding, Timesteps, get_1d_sincos_pos_embed_from_grid  # noqa: E402
from diffusers.schedulers import scheduling_flow_match_lcm  # noqa: E402

CLASSES = 3
SEEDS, LABELS = [3, 1, 4], torch.tensor([0, 2, 1])


def awake(net: nn.Module, std: float = 0.15) -> nn.Module:
    """The network with random weights everywhere, so that no term is hidden by a zero."""
    random = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=std, generator=random)
    return net.eval()


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


near = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)


# ---- The transformer


def dit_of_diffusers(net: DiT, inputs: int, heads: int, resolution: int) -> DiTTransformer2DModel:
    """Diffusers' transformer with our weights, position code and time steps."""
    width, patch, outputs = net.patches.out_features, net.patch, net.outputs
    theirs = DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        in_channels=inputs,
        out_channels=outputs,
        num_layers=len(net.blocks),
        sample_size=resolution,
        patch_size=patch,
        activation_fn="gelu",  # the exact one, as here; their default is its approximation by tanh
        num_embeds_ada_norm=net.classes,
        norm_eps=1e-6,
    ).eval()

    def pair(name: str, layer: nn.Linear) -> dict[str, Tensor]:
        return {f"{name}.weight": layer.weight, f"{name}.bias": layer.bias}

    weights = {
        "pos_embed.proj.weight": net.patches.weight.view(width, inputs, patch, patch),
        "pos_embed.proj.bias": net.patches.bias,
        **pair("proj_out_1", net.final.modulation),
        # Their patches are ordered (row, column, channel), ours (channel, row, column).
        "proj_out_2.weight": net.final.linear.weight.unflatten(0, (outputs, -1)).transpose(0, 1).flatten(0, 1),
        "proj_out_2.bias": net.final.linear.bias.unflatten(0, (outputs, -1)).T.flatten(),
    }
    for index, block in enumerate(net.blocks):
        at, embedding = f"transformer_blocks.{index}", f"transformer_blocks.{index}.norm1.emb"
        for name, rows in zip("qkv", range(3)):
            weights[f"{at}.attn1.to_{name}.weight"] = block.attention.qkv.weight.chunk(3)[rows]
            weights[f"{at}.attn1.to_{name}.bias"] = block.attention.qkv.bias.chunk(3)[rows]
        weights |= pair(f"{at}.attn1.to_out.0", block.attention.proj)
        weights |= pair(f"{at}.ff.net.0.proj", block.mlp[0]) | pair(f"{at}.ff.net.2", block.mlp[2])
        weights |= pair(f"{at}.norm1.linear", block.modulation)
        weights |= pair(f"{embedding}.timestep_embedder.linear_1", net.time.mlp[0])
        weights |= pair(f"{embedding}.timestep_embedder.linear_2", net.time.mlp[2])
        weights[f"{embedding}.class_embedder.embedding_table.weight"] = net.label.weight
        theirs.transformer_blocks[index].norm1.emb.time_proj.downscale_freq_shift = 0  # as in DiT's own code
    theirs.load_state_dict(weights, strict=True)
    theirs.pos_embed.pos_embed = position_code(resolution // patch, width)[None]
    return theirs


@pytest.mark.parametrize("inputs, patch, resolution", [(2, 2, 8), (4, 1, 5)])
def test_the_transformer_is_diffusers_own(inputs, patch, resolution):
    net = awake(DiT(inputs, 2, depth=2, width=24, heads=3, patch=patch, classes=CLASSES))
    theirs = dit_of_diffusers(net, inputs, 3, resolution)
    x, t = normal(4, inputs, resolution, resolution), torch.tensor([0.0, 0.013, 0.5, 1.0])
    labels = torch.tensor([0, 1, 2, CLASSES])
    assert CLASSES == theirs.transformer_blocks[0].norm1.emb.class_embedder.num_classes  # as they drop it
    with torch.no_grad():
        wanted = theirs(x, 1000 * t, labels).sample
        near(net(x, t, labels), wanted)
    assert wanted.std() > 0.1


def test_the_code_of_positions_is_the_sine_code_of_diffusers_at_the_centres_of_tokens():
    grid, width = 6, 32
    centres = (torch.arange(grid).double() + 0.5) * 16 / grid  # a grid of 16 has a spacing of 1
    one = get_1d_sincos_pos_embed_from_grid(width // 2, centres).float()
    rows, columns = one.repeat_interleave(grid, 0), one.repeat(grid, 1)
    torch.testing.assert_close(position_code(grid, width), torch.cat([rows, columns], 1), rtol=0, atol=1e-6)


def test_the_embedding_of_time_is_diffusers_own():
    ours, sines = awake(TimestepEmbedder(20, 32)), Timesteps(32, flip_sin_to_cos=True, downscale_freq_shift=0)
    theirs = TimestepEmbedding(32, 20)
    names = {"linear_1": ours.mlp[0], "linear_2": ours.mlp[2]}
    theirs.load_state_dict({f"{k}.{n}": p for k, layer in names.items() for n, p in layer.named_parameters()})
    t = torch.tensor([0.0, 0.001, 0.37, 0.999, 1.0])
    near(ours(t), theirs(sines(1000 * t)))


# ---- The UNet

WIDTHS, BLOCKS, HEADS, GROUPS, RESOLUTION = (8, 16, 24), 2, 2, 4, 16


def our_unet(levels: int, top_block: bool) -> FlexiUNet:
    options = {"blocks": BLOCKS, "heads": HEADS, "groups": GROUPS, "top_block": top_block}
    size = UNetNetwork(width=8, multipliers=[1, 2, 3], attention=[4], **options)
    return awake(size.build(3, RESOLUTION, levels, CLASSES), 0.2)


def unet_of_diffusers(net: FlexiUNet) -> UNet2DModel:
    """Diffusers' UNet of ADM's kind with our weights, including the top block."""
    theirs = UNet2DModel(
        in_channels=3,
        out_channels=3,
        block_out_channels=WIDTHS,
        layers_per_block=BLOCKS,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=WIDTHS[-1] // HEADS,
        norm_num_groups=GROUPS,
        attn_norm_num_groups=GROUPS,  # of the middle
        resnet_time_scale_shift="scale_shift",
        flip_sin_to_cos=True,
        freq_shift=0,
        num_class_embeds=CLASSES + 1,
    ).eval()
    weights = {"class_embedding.weight": net.label.weight}

    def put(name: str, layer: nn.Module) -> None:
        weights.update({f"{name}.{key}": value for key, value in layer.named_parameters()})

    def block(at: str, index: int, ours) -> None:
        names = {"norm1": "norm_in", "conv1": "conv_in", "time_emb_proj": "modulation", "norm2": "norm_out"}
        names |= {"conv2": "conv_out", "conv_shortcut": "shortcut"}
        for theirs_name, name in names.items():
            put(f"{at}.resnets.{index}.{theirs_name}", getattr(ours.residual, name))
        if isinstance(ours.attention, nn.Identity):
            return
        attention, here = ours.attention, f"{at}.attentions.{index}"
        put(f"{here}.group_norm", attention.norm)
        put(f"{here}.to_out.0", attention.proj)
        for kind in ("weight", "bias"):  # ADM orders the channels head, (q, k, v), width
            rows = getattr(attention.qkv, kind).unflatten(0, (HEADS, 3, -1))
            for k, name in enumerate("qkv"):
                weights[f"{here}.to_{name}.{kind}"] = rows[:, k].flatten(0, 1)

    put("conv_in", net.stem)
    put("time_embedding.linear_1", net.time.mlp[0])
    put("time_embedding.linear_2", net.time.mlp[2])
    for level in range(3):
        for index, ours in enumerate(net.encoder[level]):
            block(f"down_blocks.{level}", index, ours)
        for index, ours in enumerate(net.decoder[level]):
            block(f"up_blocks.{2 - level}", index, ours)
        if level < 2:
            put(f"down_blocks.{level}.downsamplers.0.conv", net.down[level])
            put(f"up_blocks.{1 - level}.upsamplers.0.conv", net.up[level])
    block("mid_block", 0, net.middle[0])
    block("mid_block", 1, net.middle[1])
    put("conv_norm_out", net.norm)
    put("conv_out", net.head)
    theirs.load_state_dict(weights, strict=True)
    return theirs


def test_the_plain_unet_is_diffusers_own():
    net = our_unet(levels=1, top_block=True)
    theirs = unet_of_diffusers(net)
    x, labels = normal(4, 3, RESOLUTION, RESOLUTION), torch.tensor([0, 1, 2, CLASSES])
    t = torch.tensor([0, 7, 499, 999])
    with torch.no_grad():
        wanted = theirs(x, t, labels).sample
        near(net(x, t, labels, RESOLUTION), wanted)
    assert wanted.std() > 0.1


@pytest.mark.parametrize("resolutions", [(8, 8), (4, 4), (4, 8)])
def test_a_small_image_takes_the_published_way_through_the_plain_unets_layers(resolutions):
    """Stem, input adapter, encoder from the entry level, decoder up to the exit level, output adapter, head."""
    net = our_unet(levels=3, top_block=True)
    theirs = unet_of_diffusers(net)
    start, end = (int(math.log2(RESOLUTION // resolution)) for resolution in resolutions)
    x, t, labels = (
        normal(3, 3, resolutions[0], resolutions[0]),
        torch.tensor([2, 500, 999]),
        torch.tensor([0, 1, CLASSES]),
    )
    with torch.no_grad():
        condition = theirs.time_embedding(theirs.time_proj(t)) + theirs.class_embedding(labels)
        h = theirs.conv_in(x)
        entering = (8, 8, 16)[start]
        h = net.adapt_in[str(entering)](h) if entering != 8 else h
        skips: list[Tensor] = []
        for level in range(start, 3):
            h, found = theirs.down_blocks[level](h, condition)
            skips += found
        h = theirs.mid_block(h, condition)
        for level in range(2, end - 1, -1):
            up = theirs.up_blocks[2 - level]
            for index, residual in enumerate(up.resnets[: BLOCKS + (level > end)]):
                missing = residual.in_channels - h.shape[1]  # a level that the encoder never entered has no skips
                skip = skips.pop() if skips else torch.zeros(3, missing, *h.shape[2:])
                h = residual(torch.cat([h, skip], 1), condition)
                h = up.attentions[index](h) if hasattr(up, "attentions") else h
            h = up.upsamplers[0](h) if level > end else h
        h = net.adapt_out[str(WIDTHS[end])](h)
        wanted = theirs.conv_out(theirs.conv_act(theirs.conv_norm_out(h)))
        near(net(x, t, labels, resolutions[1]), wanted)
    assert wanted.shape[-1] == resolutions[1] and wanted.std() > 0.05


# ---- Samplers


def velocity(x: Tensor, t: Tensor) -> Tensor:
    """A smooth velocity whose paths are curved."""
    return torch.sin(2 * x + 3 * t.view(-1, 1, 1, 1)) - 0.5 * x


@pytest.mark.parametrize("steps", [1, 7])
def test_euler_is_the_flow_matching_scheduler(steps):
    theirs = FlowMatchEulerDiscreteScheduler()
    theirs.set_timesteps(sigmas=[1 - k / steps for k in range(steps)])
    x, seen = normal(3, 2, 4, 4), []
    found = flow.solve(velocity, x, flow.Solver(name="euler", steps=steps), seen.append)
    for k, t in enumerate(theirs.timesteps):
        x = theirs.step(velocity(x, t.expand(3) / 1000), t, x).prev_sample
        near(seen[k], x)
    near(found, x)


def test_heun_is_the_flow_matching_scheduler():
    """Except for the last step, which is of first order in diffusers: it never evaluates the slope at time 0."""
    steps = 6
    theirs = FlowMatchHeunDiscreteScheduler(num_train_timesteps=steps)  # its times are 1, 5/6, 5/6, ..., 1/6, 1/6
    theirs.set_timesteps(steps)
    x, seen = normal(3, 2, 4, 4), []
    flow.solve(velocity, x, flow.Solver(name="heun", steps=steps), seen.append)
    for k, t in enumerate(theirs.timesteps[: 2 * (steps - 1)]):
        x = theirs.step(velocity(x, t.expand(3) / steps), t, x).prev_sample
        if k % 2:
            near(seen[k // 2], x)


def test_msf_is_sampled_scale_by_scale_as_by_the_flow_matching_scheduler():
    """Each scale starts from its own noise, given the scales before, with its own guidance, normalisation and steps."""
    resolutions, steps, weights = [4, 6, 8], [5, 3, 2], [1.5, 1.0, 2.0]
    network = {"depth": 1, "width": 16, "heads": 2, "patch": 2}
    configs = [
        {"index": k, "resolutions": resolutions, "target": {"shift": [0.1 * k, 0.2], "scale": [1 / (k + 1), 0.7]}}
        | {"latent": {"shift": [0.1, -0.2], "scale": [0.2, 0.1]}, "classes": CLASSES, "network": network}
        for k in range(3)
    ]
    configs = [msf_parts.ScaleConfig.model_validate(config) for config in configs]
    nets = [awake(config.build(), 0.3) for config in configs]
    solvers = [flow.Solver(steps=n, guidance_scale=weight) for n, weight in zip(steps, weights)]
    sampler = msf_sampler.MSFSampler(nets, configs, solvers, Codec(None, 2), "fp32")

    def up(y: Tensor) -> Tensor:
        return nn.functional.interpolate(y, size=(8, 8), mode="bilinear")

    total, none = torch.zeros(3, 2, 8, 8), torch.full((3,), CLASSES)
    with torch.no_grad():
        for k, resolution in enumerate(resolutions):
            small = nn.functional.interpolate(total, size=(resolution, resolution), mode="bilinear", antialias=True)
            given = [small] if k else []
            theirs = FlowMatchEulerDiscreteScheduler()
            theirs.set_timesteps(sigmas=[1 - i / steps[k] for i in range(steps[k])])
            x = noise_of_seeds(SEEDS, f"scale-{k}", (2, resolution, resolution))
            for t in theirs.timesteps:
                state, now = torch.cat([x, *given], 1), t.expand(3) / 1000
                of_class, of_none = nets[k](state, now, LABELS), nets[k](state, now, none)
                x = theirs.step(of_none + weights[k] * (of_class - of_none), t, x).prev_sample
            mean, std = (torch.tensor(x).view(1, 2, 1, 1) for x in (configs[k].target.shift, configs[k].target.scale))
            total = total + up(x * std + mean)
    shift, scale = (torch.tensor(x).view(1, 2, 1, 1) for x in ([0.1, -0.2], [0.2, 0.1]))
    images = sampler(SEEDS, LABELS)
    near(images, ((total * scale + shift + 1) / 2).clamp(0, 1))
    assert images.std() > 0.05


def test_dpm_solver_is_the_scheduler_configured_in_its_own_way():
    """Its training steps are our grid: its betas give the same alpha at each time, and nothing is replaced."""
    steps = 12
    times = torch.tensor(score.ratio_times(steps)[:-1][::-1], dtype=torch.float64)  # rising, from 0.001 to 1
    alpha_bar = VP.alpha(times) ** 2
    betas = 1 - alpha_bar / torch.cat([torch.ones(1).double(), alpha_bar[:-1]])
    theirs = DPMSolverMultistepScheduler(
        num_train_timesteps=steps, trained_betas=betas.tolist(), solver_order=2, algorithm_type="dpmsolver++"
    )
    theirs.set_timesteps(timesteps=list(range(steps))[::-1])

    def eps(x: Tensor, t: Tensor) -> Tensor:
        return torch.sin(x + t.view(-1, 1, 1, 1)) * 0.3 + 0.7 * x

    x, seen = normal(3, 2, 4, 4), []
    found = score.dpm_solver(eps, x, steps, watch=seen.append)
    for k, step in enumerate(theirs.timesteps):
        x = theirs.step(eps(x, times[step].float().expand(3)), step, x).prev_sample
        torch.testing.assert_close(seen[k], x, rtol=1e-3, atol=1e-3)  # their table is of single precision
    torch.testing.assert_close(found, x, rtol=1e-3, atol=1e-3)


def test_the_student_is_sampled_as_by_the_scale_wise_scheduler(monkeypatch):
    """Between steps, the clean latent is upscaled bicubically and noised again."""
    resolutions, sigmas = [4, 6, 6, 10], [1.0, 0.9, 0.7, 0.4]
    config = {"channels": 2, "classes": CLASSES, "network": {"depth": 2, "width": 16, "heads": 2, "patch": 2}}
    config |= {"schedule": {"resolutions": resolutions, "sigmas": sigmas}, "upscaling": "B"}
    config = StudentConfig.model_validate(config | {"latent": {"shift": [0.1, -0.2], "scale": [0.2, 0.1]}})
    net = awake(config.build())
    sampler = swd_sampler.StudentSampler(net, config, Codec(None, 2), "fp32")

    noises = [
        noise_of_seeds(SEEDS, f"step-{k}", (2, resolution, resolution)) for k, resolution in enumerate(resolutions)
    ]
    rest = iter([*noises[1:], torch.zeros(3, 2, 10, 10)])  # after the last step its sigma is zero
    monkeypatch.setattr(scheduling_flow_match_lcm, "randn_tensor", lambda *shape, **_: next(rest))
    theirs = FlowMatchLCMScheduler(
        scale_factors=[resolution / resolutions[0] for resolution in resolutions[1:]], upscale_mode="bicubic"
    )
    theirs.set_timesteps(sigmas=sigmas)
    x = noises[0]
    with torch.no_grad():
        for t in theirs.timesteps:
            x = theirs.step(net(x, t.expand(3) / 1000, LABELS), t, x).prev_sample
    shift, scale = (torch.tensor(x).view(1, 2, 1, 1) for x in ([0.1, -0.2], [0.2, 0.1]))
    images = sampler(SEEDS, LABELS)
    near(images, ((x * scale + shift + 1) / 2).clamp(0, 1))
    assert images.std() > 0.05


# ---- Adapters


def test_an_adapter_adds_b_a_to_the_weights_and_can_be_worked_in():
    net = awake(DiT(2, 2, depth=2, width=16, heads=2, patch=2, classes=CLASSES))
    plain = {name: value.clone() for name, value in net.state_dict().items()}
    x, t = normal(3, 2, 6, 6), torch.tensor([0.2, 0.5, 0.9])
    with torch.no_grad():
        before = net(x, t, LABELS)
        model = adapted(net, 4)
        torch.testing.assert_close(model(x, t, LABELS), before, rtol=0, atol=0)
        low = {n: p for n, p in model.named_parameters() if p.requires_grad}
        for index, parameter in enumerate(low.values()):
            parameter.copy_(0.2 * normal(*parameter.shape, seed=index))
        by_hand = dict(plain)
        layers = [n.removesuffix(".lora_A.default.weight") for n in low if n.endswith(".lora_A.default.weight")]
        for name in layers:
            A, B = (low[f"{name}.lora_{which}.default.weight"] for which in "AB")
            assert A.shape[0] == B.shape[1] == 4
            key = f"{name.removeprefix('base_model.model.')}.weight"
            by_hand[key] = plain[key] + B @ A
        changed = {name for name in plain if not torch.equal(by_hand[name], plain[name])}
        inner = ("attention.qkv", "attention.proj", "mlp.0", "mlp.2")
        assert changed == {f"blocks.{k}.{layer}.weight" for k in range(2) for layer in inner}
        reference = awake(DiT(2, 2, depth=2, width=16, heads=2, patch=2, classes=CLASSES))
        reference.load_state_dict(by_hand)
        wanted = reference(x, t, LABELS)
        assert (wanted - before).abs().max() > 0.01
        near(model(x, t, LABELS), wanted)
        near(Beneath(model)(x, t, LABELS), before)
        whole = merged(model)
        near(whole(x, t, LABELS), wanted)
        torch.testing.assert_close(whole.state_dict(), by_hand, rtol=0, atol=1e-6)
