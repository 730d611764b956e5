"""The floor: the same networks in the shortest plain torch that does the same work, with nothing around it.

A training step draws a batch, computes the loss, clips the gradients, steps AdamW and averages the weights. A sampler
draws noise and calls the network once a step. Nothing is checkpointed, logged, resumable or a function of a seed.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from multiscale.core.device import autocast, cast_weights, default_device, layout_of, placed
from multiscale.networks.autoencoder import Codec
from multiscale.training.part import Part

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]  # (network, batch, labels)


def trainer(net: nn.Module, loss: Loss, data: Tensor, labels: Tensor, batch: int, precision: str) -> Callable[[], None]:
    """One training step in plain torch."""
    device = default_device()
    net = placed(net, device, layout_of(net)).train()
    average = copy.deepcopy(net).requires_grad_(False)
    weights, averages = list(net.parameters()), list(average.parameters())
    optimizer = torch.optim.AdamW(weights, lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0, fused=True)

    def step() -> None:
        rows = torch.randint(len(data), (batch,))
        x, classes = data[rows].to(device), labels[rows].to(device)
        with autocast(precision, device):
            found = loss(net, x, classes)
        found.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(averages, weights, 0.01)

    return step


@dataclass(frozen=True)
class Fresh:
    """Random numbers for a part's loss, straight from torch."""

    step: int
    batch: int

    def normal(self, name: str, *shape: int) -> Tensor:
        return torch.randn(self.batch, *shape)

    def uniform(self, name: str, *shape: int) -> Tensor:
        return torch.rand(self.batch, *shape)


def distiller(part: Part, batch: int, precision: str) -> Callable[[], None]:
    """One training step of a student in plain torch: networks take turns, and the losses are the part's."""
    device, steps = default_device(), itertools.count()
    nets = {name: placed(net, device, layout_of(net)).train() for name, net in part.networks.items()}
    for net in part.frozen.values():
        placed(cast_weights(net, precision), device, layout_of(net))
    average = copy.deepcopy(nets[part.main]).requires_grad_(False)
    weights, averages = {name: list(net.parameters()) for name, net in nets.items()}, list(average.parameters())
    optimizers = {
        name: torch.optim.AdamW(own, lr=1e-4, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        for name, own in weights.items()
    }

    def step() -> None:
        index = next(steps)
        rows = {key: x.to(device) for key, x in part.data[torch.randint(len(part.data), (batch,))].items()}
        for name in part.turns(index):
            for other, net in nets.items():
                net.requires_grad_(other == name)
            with autocast(precision, device):
                found, _ = part.loss(name, nets, rows, Fresh(index, batch))
            found.backward()
            nn.utils.clip_grad_norm_(weights[name], 1.0)
            optimizers[name].step()
            optimizers[name].zero_grad()
            if name == part.main:
                with torch.no_grad():
                    torch._foreach_lerp_(averages, weights[name], 0.01)

    return step


def flow_loss(net: nn.Module, data: Tensor, labels: Tensor) -> Tensor:
    """Rectified flow with logit-normal times; a tenth of the labels dropped."""
    noise, t = torch.randn_like(data), torch.randn(len(data)).sigmoid()
    labels = torch.where(torch.rand(len(data)) < 0.1, net.classes, labels)
    mixed = torch.lerp(data, noise, t.view(-1, 1, 1, 1))
    return (net(mixed, t, labels).float() - (noise - data)).square().mean()


def cosine(count: int) -> tuple[Tensor, Tensor]:
    """Signal and noise of a cosine schedule, (count,) each."""
    angle = torch.linspace(0.01, math.pi / 2 - 0.01, count)
    return angle.cos(), angle.sin()


def denoising_loss(net: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    """The clean image predicted from a noisy one, weighted by a signal-to-noise ratio of at most 1."""
    signal, sigma = cosine(1000)
    clean, t = pixels.float() / 127.5 - 1, torch.randint(1000, (len(pixels),))
    a, s = signal[t].view(-1, 1, 1, 1), sigma[t].view(-1, 1, 1, 1)
    error = net(a * clean + s * torch.randn_like(clean), t, None, clean.shape[-1]).float() - clean
    return ((a / s).square().clamp(max=1) * error.square()).mean()


@torch.inference_mode()
def euler(net: nn.Module, codec: Codec, labels: Tensor, grid: int, steps: int, scale: float, precision: str) -> Tensor:
    """Guided Euler steps from noise to latents (N, c, grid, grid), decoded to images in [0, 1]."""
    x = torch.randn(len(labels), codec.latent_channels, grid, grid)
    both = torch.cat([labels, torch.full_like(labels, net.classes)])
    with autocast(precision, x.device):
        for t in torch.linspace(1, 0, steps + 1)[:-1]:
            made, plain = net(torch.cat([x, x]), t.expand(2 * len(x)), both).float().chunk(2)
            x = x - (plain + scale * (made - plain)) / steps
        return (codec.decode(x) / 2 + 0.5).clamp(0, 1)


@torch.inference_mode()
def ancestral(net: nn.Module, shape: tuple[int, ...], steps: int) -> Tensor:
    """Ancestral steps from noise (N, C, H, H) to images in [0, 1]."""
    signal, sigma = cosine(1000)
    times = torch.linspace(999, 0, steps + 1).long()
    x = torch.randn(shape)
    for t, s in zip(times, times[1:]):
        clean = net(x, t.expand(len(x)), None, shape[-1]).clamp(-1, 1)
        kept = (signal[t] / signal[s] * sigma[s] / sigma[t]) ** 2
        fresh = sigma[s] * (1 - kept).sqrt()
        noise = (x - signal[t] * clean) / sigma[t]
        x = signal[s] * clean + sigma[s] * kept.sqrt() * noise + fresh * torch.randn_like(x)
    return (x / 2 + 0.5).clamp(0, 1)
