"""Our DiT against diffusers' DiTTransformer2DModel of the same width, depth, heads and tokens: forward, training step.

python -m benchmarks.dit_vs_diffusers
"""

from __future__ import annotations

import torch

from benchmarks.common import in_turn, ratio, save
from multiscale.core.compat import make_torchvision_importable
from multiscale.core.device import autocast, default_device
from multiscale.networks.dit import DiT

make_torchvision_importable()
from diffusers.models import DiTTransformer2DModel  # noqa: E402

#         depth width heads patch side batch   the embedded recipe, the same with 4x the tokens, DiT-S/2 at 256 px
SIZES = [(6, 192, 3, 2, 8, 16), (6, 192, 3, 1, 8, 16), (12, 384, 6, 2, 32, 8)]
REPEATS = 15


def theirs(depth: int, width: int, heads: int, patch: int, side: int) -> torch.nn.Module:
    return DiTTransformer2DModel(
        num_attention_heads=heads,
        attention_head_dim=width // heads,
        in_channels=4,
        out_channels=4,
        num_layers=depth,
        patch_size=patch,
        sample_size=side,
        num_embeds_ada_norm=10,
    )


def measure(depth: int, width: int, heads: int, patch: int, side: int, batch: int, precision: str) -> dict:
    device = default_device()
    nets = {
        "diffusers": theirs(depth, width, heads, patch, side).to(device),
        "ours": DiT(4, 4, depth, width, heads, patch, 10).to(device),
    }
    optimizers = {name: torch.optim.AdamW(net.parameters(), fused=True) for name, net in nets.items()}
    x, t = torch.randn(batch, 4, side, side, device=device), torch.rand(batch, device=device)
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
        "depth": depth,
        "width": width,
        "tokens": (side // patch) ** 2,
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
