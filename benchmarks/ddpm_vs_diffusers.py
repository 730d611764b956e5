"""Our DDPM (SSD with one level) against diffusers' DDPMPipeline with a UNet2DModel of the same widths and blocks.

python -m benchmarks.ddpm_vs_diffusers

Whole samplers from noise to images, unconditional, both in fp32 and with their defaults, in turn; and one training step
of each network. Weights are initialised, not trained: time does not depend on them.
"""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.common import in_turn, ratio, save
from multiscale.core.compat import make_torchvision_importable
from multiscale.core.device import default_device
from multiscale.methods.ssd.model import SSDConfig, build_network
from multiscale.methods.ssd.process import ScaleSpaceProcess
from multiscale.methods.ssd.sampler import ScaleSpaceSampler
from multiscale.methods.ssd.settings import AncestralSolver
from multiscale.networks.unet import UNetNetwork

make_torchvision_importable()
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel  # noqa: E402

SIZES = [  # of images (resolution, channels, batch), and of the network: the embedded recipe, small-64, SSD-64
    (32, 1, 50, {"width": 16, "multipliers": [1, 2, 4, 4], "blocks": 1, "attention": [8], "heads": 1, "groups": 4}),
    (64, 3, 16, {"preset": "small-64"}),
    (64, 3, 4, {"preset": "SSD-64"}),
]
STEPS, REPEATS = 10, 5


def theirs(resolution: int, channels: int, size: UNetNetwork) -> UNet2DModel:
    attends = [resolution >> level in size.attention for level in range(len(size.multipliers))]
    return UNet2DModel(
        sample_size=resolution,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=[size.width * multiplier for multiplier in size.multipliers],
        layers_per_block=size.blocks,
        down_block_types=["AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        up_block_types=["AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        attention_head_dim=size.width * size.multipliers[-1] // size.heads,
        norm_num_groups=size.groups,
        resnet_time_scale_shift="scale_shift",
    )


def measure(resolution: int, channels: int, batch: int, network: dict[str, object]) -> dict:
    device = default_device()
    size = UNetNetwork.model_validate(network | {"top_block": True})  # theirs has that block too
    process = ScaleSpaceProcess(levels=1)
    config = SSDConfig(channels=channels, resolution=resolution, classes=0, process=process, network=size)
    net, other = build_network(config), theirs(resolution, channels, size).to(device)
    parameters = {"ours": sum(p.numel() for p in net.parameters()), "diffusers": other.num_parameters()}
    # as many network calls as theirs
    sampler = ScaleSpaceSampler(net, config, AncestralSolver(steps=STEPS, last_step="as-released"), "fp32")
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

    nets = {
        "ours": build_network(config).to(device, memory_format=torch.channels_last),
        "diffusers": theirs(resolution, channels, size).to(device).train(),
    }
    optimizers = {name: torch.optim.AdamW(each.parameters(), fused=True) for name, each in nets.items()}
    x = torch.randn(batch, channels, resolution, resolution, device=device)
    t = torch.zeros(batch, dtype=torch.long, device=device)

    def step(name: str) -> None:
        made = nets[name](x, t, None, resolution) if name == "ours" else nets[name](x, t).sample
        made.square().mean().backward()
        optimizers[name].step()
        optimizers[name].zero_grad()

    training = in_turn({name: partial(step, name) for name in nets}, REPEATS, warmup=1)
    return {
        "size": {"resolution": resolution, "channels": channels, "batch": batch, "network": size.model_dump()},
        "network_calls": calls,
        "parameters": parameters,
        "sampling": {"times_faster": ratio(sampling, "diffusers", "ours"), "seconds": sampling},
        "training_step": {"times_faster": ratio(training, "diffusers", "ours"), "seconds": training},
    }


if __name__ == "__main__":
    save("ddpm_vs_diffusers", {"repeats": REPEATS, "rows": [measure(*size) for size in SIZES]})
