"""What a sample of SD3.5-M costs scale by scale, against full resolution and the guided teacher: tokens, FLOP, memory.

python -m benchmarks.sd35

Worked out from hollow tensors at the published size, bf16 and one image. One block is really run on the CPU, with
random weights. All without the autoencoder and the text encoders, which the published seconds include.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks.common import save
from multiscale.methods.swd.adapter import adapted
from multiscale.methods.swd.schedule import PUBLISHED as SCHEDULES
from multiscale.networks.published.sd3 import SD3, SD3Network
from multiscale.plan import Call, Understudy, size
from multiscale.timing import lap

NAME = "SD3.5-M"
NETWORK = SD3Network.model_validate({"preset": NAME})
RANK, BLOCK = 64, 11  # of the adapter, and the block whose tokens MMD and the GAN take, as published
TEXT = 77 + 256  # tokens of CLIP and T5, as diffusers' pipeline pads them by default
FULL = 128  # edge of the latents of 1024 px
RESOLUTIONS = SCHEDULES[NAME][1]
SAMPLES = {  # resolutions of all calls for one image; the seconds that are to be reached on a GPU
    "6 steps, scale-wise": (list(RESOLUTIONS), 0.17),
    "6 steps, full resolution": ([FULL] * 6, 0.26),
    "28 steps, full resolution, guided": ([FULL] * 28 * 2, 0.64),
}
TIMED = (32, 64, 128)
REPEATS = 3


def shapes(resolution: int) -> list[tuple[int, ...]]:
    """Of x, t, prompt and pooled prompt, for one image."""
    text = (1, TEXT, NETWORK.joint_attention_dim), (1, NETWORK.pooled_projection_dim)
    return [(1, NETWORK.in_channels, resolution, resolution), (1,), *text]


def weightless(build: Callable[[], nn.Module]) -> nn.Module:
    """The network in bf16, without memory for its weights."""
    with torch.device("meta"):
        return build().to(torch.bfloat16)


def cost(net: nn.Module, resolution: int, train: bool = False, **options: Any) -> Call:
    """Of a call for one image; with `train`, of its backward pass as well."""
    stand = Understudy(net)
    with torch.set_grad_enabled(train):
        stand(*(torch.empty(shape, dtype=torch.bfloat16, device="meta") for shape in shapes(resolution)), **options)
    return stand.calls[0]


def student(recompute: bool) -> nn.Module:
    """The network with the published adapter."""
    net = NETWORK.build()
    if recompute:
        net.recompute()
    return adapted(net, RANK, SD3.adapted)


def figures(net: nn.Module, found: Call) -> dict[str, float]:
    return {
        "weights, GB": size(net)[2] / 1e9,
        "activations, GB": found.activations / 1e9,
        "TFLOP": found.flops / 1e12,
    }


def block_seconds(resolution: int) -> list[float]:
    """Processor seconds of one call of a block with two attentions, in bf16 on one thread."""
    one = NETWORK.model_copy(update={"num_layers": 2, "dual_attention_layers": [0], "pos_embed_max_size": 64})
    layer = one.build().net.transformer_blocks[0].to(torch.bfloat16).eval()
    width, draws = one.caption_projection_dim, torch.Generator().manual_seed(0)
    image, text = (torch.randn(1, count, width, generator=draws) for count in ((resolution // 2) ** 2, TEXT))
    given = [each.to(torch.bfloat16) for each in (image, text, torch.randn(1, width, generator=draws))]

    @torch.inference_mode()
    def call() -> None:
        layer(*given)

    call()
    return [lap(call).processor for _ in range(REPEATS)]


def main() -> None:
    torch.set_num_threads(1)
    blocks = {resolution: block_seconds(resolution) for resolution in TIMED}  # before anything hollow
    net = weightless(NETWORK.build)
    calls = {resolution: cost(net, resolution) for resolution in RESOLUTIONS}
    samples = {}
    for name, (resolutions, seconds) in SAMPLES.items():
        flops = sum(calls[resolution].flops for resolution in resolutions)
        samples[name] = {
            "calls": len(resolutions),
            "image tokens": sum((resolution // NETWORK.patch_size) ** 2 for resolution in resolutions),
            "TFLOP": flops / 1e12,
            "weights, GB": size(net)[2] / 1e9,
            "activations, GB": max(calls[resolution].activations for resolution in resolutions) / 1e9,
            "seconds to reach": seconds,
            "TFLOP/s that these seconds need": flops / 1e12 / seconds,
        }
    features = cost(net, FULL, block=BLOCK, stop=True)
    students = {
        "activations kept": weightless(lambda: student(False)),
        "activations computed again": weightless(lambda: student(True)),
    }
    training = {name: figures(each, cost(each, FULL, train=True)) for name, each in students.items()}
    save(
        "sd35",
        {
            "parameters": size(net)[0],
            "text tokens": TEXT,
            "a call, by resolution of the latents": {edge: figures(net, found) for edge, found in calls.items()},
            f"tokens after block {BLOCK}, at {FULL}": figures(net, features),
            f"forward and backward of the student with an adapter of rank {RANK}, at {FULL}": training,
            "a sample": samples,
            "a block on the CPU: processor seconds, on a machine that was not idle": blocks,
        },
        packages=("peft",),
    )


if __name__ == "__main__":
    main()
