"""A published teacher's samples are those of diffusers' own pipeline: texts, guidance, solver, shift, autoencoder."""

from __future__ import annotations

import json
import math

import pytest
import torch
from test_text import clip, t5, tokenizer
from tiny_published import NETWORKS

from multiscale import flow, solvers
from multiscale.condition import Prompts
from multiscale.core.compat import make_torchvision_importable
from multiscale.core.storage import Table
from multiscale.core.streams import noise_of_seeds
from multiscale.guidance import guided_by
from multiscale.methods.swd.config import TeacherConfig
from multiscale.methods.swd.sampler import TeacherSampler
from multiscale.networks import autoencoder, text
from multiscale.networks.published.network import normalisation
from multiscale.networks.published.sdxl import levels

TEXTS, SEEDS, EDGE, STEPS, SCALE = ["a one", "a one above a two"], [3, 4], 16, 5, 4.5
ASKED = {"prompt": TEXTS, "height": 2 * EDGE, "width": 2 * EDGE, "output_type": "pt", "num_inference_steps": STEPS}
WIDTHS = {  # of the tiny text encoders
    "sd3": {"joint_attention_dim": 32, "pooled_projection_dim": 20},
    "flux": {"joint_attention_dim": 24, "pooled_projection_dim": 8},
    "sdxl": {"cross_attention_dim": 20, "projection_class_embeddings_input_dim": 12 + 6 * 8},
}


def pipeline(family: str, net: torch.nn.Module):
    """diffusers' own around a tiny network."""
    import diffusers

    def vae(**config: float):
        blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
        return diffusers.AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, **blocks, **config).eval()

    tokenizers = {name: tokenizer(77) for name in ("tokenizer", "tokenizer_2")}
    if family == "sd3":
        return diffusers.StableDiffusion3Pipeline(
            **{"transformer": net, "vae": vae(shift_factor=0.0609, scaling_factor=1.5305)},
            **{"scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), **tokenizers},
            **{"text_encoder": clip(8), "text_encoder_2": clip(12), "text_encoder_3": t5(32)},
            tokenizer_3=tokenizer(77),
        )
    if family == "flux":
        scheduler = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15}
        scheduler |= {"base_image_seq_len": 256, "max_image_seq_len": 4096}
        return diffusers.FluxPipeline(
            **{"transformer": net, "vae": vae(shift_factor=0.1159, scaling_factor=0.3611)},
            **{"scheduler": diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, **scheduler), **tokenizers},
            **{"text_encoder": clip(8, "CLIPTextModel"), "text_encoder_2": t5(24)},
        )
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    return diffusers.StableDiffusionXLPipeline(
        **{"unet": net, "vae": vae(scaling_factor=0.13025), **tokenizers},
        scheduler=diffusers.EulerDiscreteScheduler(**betas, timestep_spacing="leading", steps_offset=1),
        **{"text_encoder": clip(8, "CLIPTextModel"), "text_encoder_2": clip(12)},
    )


def teacher(family: str, folder, shift: float) -> TeacherSampler:
    """Ours of the pipeline in a folder; Flux knows its guidance scale."""
    network = NETWORKS[family].model_copy(update=WIDTHS[family])
    encoder = text.load(folder, 77 if family == "sdxl" else 9, "fp32")
    prompt, pooled = encoder.encode(TEXTS)
    conditioner = Prompts(Table({"prompt": prompt.numpy(), "pooled": pooled.numpy()}), encoder.null())
    codec = autoencoder.Codec(autoencoder.kl_class().from_pretrained(folder / "vae").eval(), 3)
    latent = normalisation(json.loads((folder / "vae" / "config.json").read_text()))
    config = TeacherConfig(channels=4, classes=0, latent=latent, network=network, resolution=EDGE)
    solver = flow.Solver(steps=STEPS, guidance_scale=1 if family == "flux" else SCALE, shift=shift)
    return TeacherSampler(network.load(folder), config, codec, solver, "fp32", conditioner)


@pytest.fixture(params=NETWORKS)
def both(request, tmp_path):
    """diffusers' pipeline and our teacher, of the same weights, and the noise that both start from."""
    make_torchvision_importable()  # before the first import of diffusers
    torch.manual_seed(0)
    network = NETWORKS[request.param].model_copy(update=WIDTHS[request.param])
    whole = pipeline(request.param, network.build().net.eval())
    whole.set_progress_bar_config(disable=True)
    whole.save_pretrained(tmp_path)
    mu = 0.5 + ((EDGE // 2) ** 2 - 256) * (1.15 - 0.5) / (4096 - 256)  # Flux's shift for so many tokens
    ours = teacher(request.param, tmp_path, {"sd3": 3.0, "flux": math.exp(mu), "sdxl": 1.0}[request.param])
    return request.param, whole, ours, noise_of_seeds(SEEDS, "teacher", (4, EDGE, EDGE))


@torch.no_grad()
def test_samples_are_those_of_diffusers_own_pipeline(both):
    """At its noise levels: SD3's scheduler is told even ones, and SDXL's timesteps are ours as levels of a flow."""
    family, whole, ours, noise = both
    labels = torch.arange(len(TEXTS))
    if family == "sd3":
        even = [1 - step / STEPS for step in range(STEPS)]
        wanted = whole(**ASKED, sigmas=even, guidance_scale=SCALE, latents=noise, max_sequence_length=9).images
        found = ours.images(SEEDS, labels, None)
    elif family == "flux":
        packed = whole._pack_latents(noise, len(noise), 4, EDGE, EDGE)
        wanted = whole(**ASKED, guidance_scale=SCALE, latents=packed, max_sequence_length=9).images
        found = ours.images(SEEDS, labels, None)
    else:
        size = {"original_size": (128, 128), "target_size": (128, 128)}
        wanted = whole(**ASKED, **size, guidance_scale=SCALE, latents=noise.clone()).images
        known = levels()[whole.scheduler.timesteps.long()].float()
        times, first = torch.cat([known, torch.zeros(1)]), whole.scheduler.sigmas[0]
        velocity = guided_by(ours.solver, ours.net, ours.conditioner(labels))
        start = noise * whole.scheduler.init_noise_sigma / (1 + first)
        z = solvers.euler(lambda x, k: velocity(x, times[k].expand(len(x))), start, times.diff())
        found = ours.decoded(z)
    assert wanted.std() > 0.05 and (wanted[0] - wanted[1]).abs().max() > 0.05
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
