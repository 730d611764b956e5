"""The losses of a few-step generator, L = L_MMD + alpha L_DMD + beta L_GAN (SwD, arXiv 2503.16397, section 3.2).

x (N, C, h, h) is the generator's clean prediction; a rectified flow noises it to x_sigma = (1 - sigma) x + sigma eps,
with the velocity v = eps - x. The adversarial terms are `adversarial`'s, form 'logistic'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

Penalty = Literal["huber", "mse"]
Average = Literal["image", "batch"]
Target = Literal["x0", "v"]
FLOOR = 1e-5  # of DMD's normaliser
BEND = 1e-3  # of the Huber penalty, as released: where it turns from a square into a line


def clean(x: Tensor, velocity: Tensor, sigma: Tensor) -> Tensor:
    """The clean image x_sigma - sigma v that a velocity stands for; sigma (N,)."""
    return x - sigma.view(-1, 1, 1, 1) * velocity.to(x.dtype)


def huber(difference: Tensor) -> Tensor:
    """sqrt(d^2 + c^2) - c: |d| for large differences, d^2 / 2c for small ones; the penalty of the released code."""
    return (difference.square() + BEND**2).sqrt() - BEND


def _sets(tokens: Tensor, average: Average) -> Tensor:
    """Tokens (N, T, D) in at least single precision, as N sets or as one."""
    tokens = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
    return tokens.flatten(0, 1).unsqueeze(0) if average == "batch" else tokens


PENALTIES: dict[Penalty, Callable[[Tensor], Tensor]] = {"huber": huber, "mse": torch.square}


def mmd(fake: Tensor, real: Tensor, penalty: Penalty, average: Average = "image") -> Tensor:
    """L_MMD: the squared maximum mean discrepancy of tokens (N, T, D) under the linear kernel, image by image.

    It is the squared distance of the two means, sum_n |m_n|^2 with m_n = mean_t fake_nt - mean_t real_nt (section 3.2).
    Here each of the D terms is under a penalty, and averaged: 'mse' is the paper's sum over N D. average='batch'
    takes all images as one set, an ablation (table 6).
    """
    fake, real = _sets(fake, average), _sets(real, average)
    return PENALTIES[penalty](fake.mean(1) - real.mean(1)).mean()


def mmd_rbf(fake: Tensor, real: Tensor, average: Average = "image", width: float = 100.0) -> Tensor:
    """The same under the kernel exp(-|a - b|^2 / 2 width^2) (table 6).

    Within a set the diagonal is left out (unbiased), across the sets it stays, as released. So the estimate is
    slightly negative for equal sets.
    """
    fake, real = _sets(fake, average), _sets(real, average)
    tokens = fake.shape[1]
    # Distances do not change when both sets move, but |a|^2 + |b|^2 - 2ab loses fewer digits near the origin.
    centre = real.detach().mean(1, keepdim=True)
    fake, real = fake - centre, real - centre

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        halves = [x.square().sum(-1) / 2 for x in (a, b)]
        return torch.exp((a @ b.mT - halves[0].unsqueeze(2) - halves[1].unsqueeze(1)) / width**2)  # (N, T, T)

    def within(a: Tensor) -> Tensor:
        pairs = kernel(a, a)
        return (pairs.sum((1, 2)) - pairs.diagonal(dim1=1, dim2=2).sum(1)) / max(1, tokens * (tokens - 1))

    with torch.autocast(fake.device.type, enabled=False):  # it would multiply in bf16
        return (within(fake) + within(real) - 2 * kernel(fake, real).mean((1, 2))).mean()


def dmd_gradient(x: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """(fake - real) / mean |x - real|: the direction of the reverse KL's gradient (DMD, arXiv 2311.18828, eqs. 7, 8).

    real and fake are clean predictions, by the teacher's score under guidance and by the fake score. Each image has one
    normaliser, of at least 1e-5: the released code divides by zero where x equals `real`.
    """
    scale = (x - real).abs().mean((1, 2, 3), keepdim=True).clamp_min(FLOOR)
    return (fake - real) / scale


def dmd(x: Tensor, real: Tensor, fake: Tensor) -> Tensor:
    """L_DMD: 1/2 mean (x - sg(x - g))^2, whose gradient in x is g = `dmd_gradient` over the number of elements."""
    with torch.no_grad():
        target = x - dmd_gradient(x, real, fake)
    return 0.5 * (x - target).square().mean()


def fake_score(x: Tensor, noise: Tensor, velocity: Tensor, sigma: Tensor, target: Target) -> Tensor:
    """The fake score's loss: flow matching on generated latents x (section 3.2).

    target='x0' is the squared error of the clean prediction, as released: sigma^2 times that of the velocity, 'v'.
    """
    error = (velocity.to(x.dtype) - (noise - x)).square()
    return (sigma.view(-1, 1, 1, 1).square() * error if target == "x0" else error).mean()
