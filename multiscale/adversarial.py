"""Adversarial training: losses, gradient penalty, SSIM, and measures of health and diversity."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Form = Literal["sigmoid-mean", "logistic"]
COLLAPSED = 0.1  # a generator whose spread is a smaller share of the residual ignores its noise


def adversarial_for_generator(form: Form, fake: Tensor) -> Tensor:
    """'sigmoid-mean': -mean sigmoid D(y'), as in WMGM's released code; 'logistic': mean log(1 + exp(-D(y'))).

    The latter is the non-saturating loss of arXiv 1406.2661, section 3.
    """
    return -torch.sigmoid(fake).mean() if form == "sigmoid-mean" else F.softplus(-fake).mean()


def adversarial_for_discriminator(form: Form, real: Tensor, fake: Tensor) -> Tensor:
    """'sigmoid-mean': (mean sigmoid D(y') - mean sigmoid D(y)) / 2, as in WMGM's released code.

    'logistic': mean log(1 + exp(D(y'))) + mean log(1 + exp(-D(y))) (arXiv 1406.2661, eq. 1, for logits D).
    """
    if form == "sigmoid-mean":
        return 0.5 * (torch.sigmoid(fake).mean() - torch.sigmoid(real).mean())
    return F.softplus(fake).mean() + F.softplus(-real).mean()


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """R1: half the mean squared norm of the logits' gradient with respect to the real images (arXiv 1801.04406, eq. 9).

    The gradient with respect to the condition is left out, because the condition of generated images is real as well.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return 0.5 * gradient.float().square().sum((1, 2, 3)).mean()


def health(real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """The discriminator's mean probability of 'real' for real and for generated images, and its accuracy."""
    right = torch.cat([real > 0, fake <= 0]).float().mean()
    return {"real": torch.sigmoid(real.float()).mean(), "fake": torch.sigmoid(fake.float()).mean(), "accuracy": right}


@contextmanager
def frozen_averages(net: nn.Module) -> Iterator[nn.Module]:
    """Freezes the running averages of a network's batch norms while its adversary is updated."""
    norms = [module for module in net.modules() if isinstance(module, _BatchNorm)]
    before = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield net
    finally:
        for norm, value in zip(norms, before):
            norm.track_running_stats = value


@lru_cache(maxsize=1)
def _window() -> Tensor:
    places = torch.arange(-5, 6, dtype=torch.float64)
    weights = torch.exp(-(places**2) / (2 * 1.5**2))
    return weights / weights.sum()


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """The mean structural similarity of images (N, C, H, W) of range 1 (Wang et al. 2004, eq. 13).

    11 x 11 Gaussian window with sigma 1.5, C1 = 0.01^2, C2 = 0.03^2, zero padding as in WMGM's released code. Computed
    in fp32: the variances are small differences of large numbers.
    """
    with torch.autocast(x.device.type, enabled=False):
        x, y = x.float(), y.float()
        window = _window().to(x)

        def blurred(z: Tensor) -> Tensor:
            z = z.flatten(0, 1).unsqueeze(1)
            return F.conv2d(
                F.conv2d(z, window.view(1, 1, -1, 1), padding=(5, 0)), window.view(1, 1, 1, -1), padding=(0, 5)
            )

        x_mean, y_mean = blurred(x), blurred(y)
        x_var, y_var = blurred(x * x) - x_mean**2, blurred(y * y) - y_mean**2
        both = blurred(x * y) - x_mean * y_mean
        c1, c2 = 0.01**2, 0.03**2
        alike = (2 * x_mean * y_mean + c1) * (2 * both + c2)
        return (alike / ((x_mean**2 + y_mean**2 + c1) * (x_var + y_var + c2))).mean()


def diversity(generate: Callable[[int], Tensor], real: Tensor, draws: int = 8) -> dict[str, float | bool]:
    """Whether generated details vary as much as real ones.

    generate(k) returns the details (N, C, h, h) of the k-th draw of noise, given the coarse bands of `real`. If they
    follow the true conditional distribution, their variance over the noise (`spread`) equals the squared error of their
    mean (`residual`). A generator that ignores its noise has a `ratio` of 0 and is `collapsed`. Both estimates are
    unbiased for any number of draws. `noise_share` is the share of the generated energy that depends on the noise,
    `energy_ratio` the generated energy over the real energy.
    """
    fake = torch.stack([generate(k).double() for k in range(draws)])
    real = real.double()
    spread = fake.var(0).mean()
    residual = (real - fake.mean(0)).square().mean() - spread / draws
    ratio = (spread / residual.clamp_min(1e-12)).item()
    return {
        "spread": spread.item(),
        "residual": residual.item(),
        "ratio": ratio,
        "collapsed": ratio < COLLAPSED,
        "noise_share": (spread / fake.square().mean().clamp_min(1e-12)).item(),
        "energy_ratio": (fake.square().mean() / real.square().mean().clamp_min(1e-12)).item(),
        "kurtosis_real": _kurtosis(real),
        "kurtosis_generated": _kurtosis(fake),
    }


def _kurtosis(x: Tensor) -> float:
    x = x - x.mean()
    return (x.pow(4).mean() / x.square().mean().square().clamp_min(1e-300)).item()
