"""Our DDPM (SSD with one level) against diffusers' DDPMPipeline with a UNet2DModel of the same widths and blocks.

python -m benchmarks.ddpm_vs_diffusers

Whole samplers from noise to images, unconditional, both in fp32 and as they come, in turn; and one training step of
each network. Weights are initialised, not trained: time does not depend on them.
"""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.common import in_turn, ratio, save
from multiscale.core.compat import make_torchvision_importable
from multiscale.core.device import default_device
from multiscale.methods.ssd import parts as ssd_parts
from multiscale.methods.ssd import sampler as ssd_sampler
from multiscale.networks.unet import FlexiUNet

make_torchvision_importable()
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel  # noqa: E402

#        side channels width multipliers blocks attention heads groups batch   the embedded recipe, small-64, SSD-64
SIZES = [
    (32, 1, 16, (1, 2, 4, 4), 1, (8,), 1, 4, 50),
    (64, 3, 32, (1, 2, 2, 2), 1, (8,), 4, 8, 16),
    (64, 3, 128, (1, 2, 3, 4), 2, (16, 8), 4, 32, 4),
]
STEPS, REPEATS = 10, 5


def theirs(side, channels, width, multipliers, blocks, attention, heads, groups) -> UNet2DModel:
    attends = [side >> level in attention for level in range(len(multipliers))]
    return UNet2DModel(
        sample_size=side,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=[width * multiplier for multiplier in multipliers],
        layers_per_block=blocks,
        down_block_types=["AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        up_block_types=["AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        attention_head_dim=width * multipliers[-1] // heads,
        norm_num_groups=groups,
        resnet_time_scale_shift="scale_shift",
    )


def ours(side, channels, width, multipliers, blocks, attention, heads, groups) -> tuple[FlexiUNet, dict, object]:
    network = {"width": width, "multipliers": multipliers, "blocks": blocks, "attention": attention, "heads": heads}
    config = {
        "channels": channels,
        "side": side,
        "classes": 0,
        "unet": "flexi",
        "predicts": "x0",
        "network": network | {"groups": groups, "top_block": True},  # theirs has that block too
        "process": {"steps": 1000, "levels": 1, "sizes": "halved", "schedule": "equal", "gamma": 1.0}
        | {"operator": "bilinear"},
    }
    process = ssd_parts.build_process(config)
    return ssd_parts.build_network(config, process), config, process


def measure(*size) -> dict:
    *shape, batch = size
    device = default_device()
    net, config, process = ours(*shape)
    other = theirs(*shape).to(device)
    parameters = {"ours": sum(p.numel() for p in net.parameters()), "diffusers": other.num_parameters()}
    # as many network calls as theirs
    solver = {"steps": STEPS, "eta": 1.0, "variance": "small", "cfg": 1.0, "last_step": "as-released"}
    sampler = ssd_sampler.ScaleSpaceSampler(net, config, process, solver, "fp32")
    pipeline = DDPMPipeline(other.eval(), DDPMScheduler(1000, prediction_type="sample"))
    pipeline.set_progress_bar_config(disable=True)
    seeds, labels = list(range(batch)), torch.zeros(batch, dtype=torch.long)
    calls = len(sampler.plan)
    sampling = in_turn(
        {
            "ours": partial(sampler, seeds, labels),
            "diffusers": partial(pipeline, batch, num_inference_steps=calls, output_type="np"),
        },
        REPEATS,
        warmup=1,
    )

    channels, side = shape[1], shape[0]
    nets = {"ours": ours(*shape)[0].to(device, memory_format=torch.channels_last), "diffusers": theirs(*shape)}
    nets["diffusers"].to(device).train()
    optimizers = {name: torch.optim.AdamW(each.parameters(), fused=True) for name, each in nets.items()}
    x, t = torch.randn(batch, channels, side, side, device=device), torch.zeros(batch, dtype=torch.long, device=device)

    def step(name: str) -> None:
        made = nets[name](x, t, None, side) if name == "ours" else nets[name](x, t).sample
        made.square().mean().backward()
        optimizers[name].step()
        optimizers[name].zero_grad()

    training = in_turn({name: partial(step, name) for name in nets}, REPEATS, warmup=1)
    return {
        "size": size,
        "network_calls": calls,
        "parameters": parameters,
        "sampling": {"times_faster": ratio(sampling, "diffusers", "ours"), "seconds": sampling},
        "training_step": {"times_faster": ratio(training, "diffusers", "ours"), "seconds": training},
    }


if __name__ == "__main__":
    save("ddpm_vs_diffusers", {"repeats": REPEATS, "rows": [measure(*size) for size in SIZES]})
