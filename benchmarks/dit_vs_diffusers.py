"""Our DiT against diffusers' DiTTransformer2DModel of the same size: seconds of a forward pass and a training step.

python -m benchmarks.dit_vs_diffusers
"""

from __future__ import annotations

import torch

from benchmarks.common import in_turn, ratio, save
from multiscale.core.compat import make_torchvision_importable
from multiscale.core.device import autocast, default_device
from multiscale.networks.dit import DiTNetwork

make_torchvision_importable()
from diffusers.models import DiTTransformer2DModel  # noqa: E402

SMALL = {"depth": 6, "width": 192, "heads": 3}
SIZES = [  # network, resolution of the latents, batch
    (DiTNetwork(**SMALL, patch=2), 8, 16),  # the embedded recipe
    (DiTNetwork(**SMALL, patch=1), 8, 16),  # four times as many tokens
    (DiTNetwork(preset="DiT-S/2"), 32, 8),  # of 256 px images
]
REPEATS = 15


def theirs(network: DiTNetwork, resolution: int, classes: int = 10) -> torch.nn.Module:
    return DiTTransformer2DModel(
        num_attention_heads=network.heads,
        attention_head_dim=network.width // network.heads,
        in_channels=4,
        out_channels=4,
        num_layers=network.depth,
        patch_size=network.patch,
        sample_size=resolution,
        num_embeds_ada_norm=classes,
    )


def measure(network: DiTNetwork, resolution: int, batch: int, precision: str) -> dict:
    device = default_device()
    nets = {
        "diffusers": theirs(network, resolution).to(device),
        "ours": network.build(4, 4, classes=10).to(device),
    }
    optimizers = {name: torch.optim.AdamW(net.parameters(), fused=True) for name, net in nets.items()}
    x, t = torch.randn(batch, 4, resolution, resolution, device=device), torch.rand(batch, device=device)
    labels = torch.randint(10, (batch,), device=device)

    def call(name: str) -> torch.Tensor:
        if name == "ours":
            return nets[name](x, t, labels)
        return nets[name](x, timestep=(t * 1000).long(), class_labels=labels).sample

    def forward(name: str) -> None:
        with torch.inference_mode(), autocast(precision, device):
            call(name)

    def step(name: str) -> None:
        with autocast(precision, device):
            loss = call(name).float().square().mean()
        loss.backward()
        optimizers[name].step()
        optimizers[name].zero_grad()

    found: dict = {
        "depth": network.depth,
        "width": network.width,
        "tokens": (resolution // network.patch) ** 2,
        "batch": batch,
        "precision": precision,
    }
    found["parameters"] = {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()}
    for kind, run in (("forward", forward), ("training_step", step)):
        for net in nets.values():
            net.train(kind == "training_step")
        seconds = in_turn({name: lambda name=name, run=run: run(name) for name in nets}, REPEATS)
        found[kind] = {"times_faster": ratio(seconds, "diffusers", "ours"), "seconds": seconds}
    return found


if __name__ == "__main__":
    rows = [measure(*size, precision) for size in SIZES for precision in ("fp32", "bf16")]
    save("dit_vs_diffusers", {"repeats": REPEATS, "rows": rows})
