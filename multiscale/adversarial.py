"""What an adversarial pair is trained with and watched by: losses, SSIM, gradient penalty, health and diversity."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

#                form            mse   ssim  adversarial  r1   r1_every  discriminator_every  draws  levels
LOSSES = {
    # the released code's weights lambda, nu, alpha; the squared error is of images in [0, 2^(j-1)]
    "official":   ("sigmoid-mean", 20.0, 0.5,  0.1,         0.0, 16,       4,                   1,     "pass"),
    # the squared error is of standardised bands, and of their mean over the noise (two draws)
    "stabilised": ("logistic",     5.0,  0.0,  0.4,         1.0, 16,       1,                   2,     "random"),
    # no adversary: the plain U-Net that the reviewers asked for
    "regression": ("logistic",     20.0, 0.5,  0.0,         0.0, 16,       1,                   1,     "random"),
}  # fmt: skip
COLLAPSED = 0.1  # of the spread that the errors call for


def adversarial_for_generator(form: str, fake: Tensor) -> Tensor:
    """-mean sigmoid D(y'), the released code's; or the non-saturating logistic loss, mean log(1 + exp(-D(y')))."""
    return -torch.sigmoid(fake).mean() if form == "sigmoid-mean" else F.softplus(-fake).mean()


def adversarial_for_discriminator(form: str, real: Tensor, fake: Tensor) -> Tensor:
    """(mean sigmoid D(y') - mean sigmoid D(y)) / 2, or the logistic loss of both."""
    if form == "sigmoid-mean":
        return 0.5 * (torch.sigmoid(fake).mean() - torch.sigmoid(real).mean())
    return F.softplus(fake).mean() + F.softplus(-real).mean()


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """R1: half the mean squared norm of the logits' gradient in the real images (arXiv 1801.04406).

    The gradient in what the discriminator is conditioned on is left out: the penalty flattens D around real images,
    and the condition is real for both kinds.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return 0.5 * gradient.float().square().sum((1, 2, 3)).mean()


def health(real: Tensor, fake: Tensor) -> dict[str, Tensor]:
    """How sure the discriminator is: mean probability of 'real' for both kinds, and the share it tells right."""
    right = torch.cat([real > 0, fake <= 0]).float().mean()
    return {"real": torch.sigmoid(real.float()).mean(), "fake": torch.sigmoid(fake.float()).mean(), "accuracy": right}


@contextmanager
def listening(net: nn.Module) -> Iterator[nn.Module]:
    """The opponent of the player that moves: its batch norms use the batch but leave their running averages alone."""
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
    """The mean structural similarity of images (N, C, H, W) of range 1 (Wang 2004).

    11 x 11 Gaussian window with sigma 1.5, C1 = 0.01^2, C2 = 0.03^2; beyond the border is zero, as in the released
    code's pytorch_ssim. Never in reduced precision: the variances are small differences.
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
    """Whether details vary as much as they should: the spread over the noise against the error of their mean.

    generate(k) gives the details (N, C, h, h) of the k-th draw of noise for the coarse bands that belong to `real`.
    For details drawn from the data's own law given the coarse band, the variance over the noise (`spread`) equals the
    squared error of their mean (`residual`); a generator that ignores its noise has a `ratio` of 0 and is `collapsed`.
    Both are unbiased in the number of draws. `noise_share` is the part of the generated energy that the noise decides.
    Beside them energy and kurtosis, generated over real.
    """
    made = torch.stack([generate(k).double() for k in range(draws)])
    real = real.double()
    spread = made.var(0).mean()
    residual = (real - made.mean(0)).square().mean() - spread / draws
    ratio = (spread / residual.clamp_min(1e-12)).item()
    return {
        "spread": spread.item(),
        "residual": residual.item(),
        "ratio": ratio,
        "collapsed": ratio < COLLAPSED,
        "noise_share": (spread / made.square().mean().clamp_min(1e-12)).item(),
        "energy_ratio": (made.square().mean() / real.square().mean().clamp_min(1e-12)).item(),
        "kurtosis_real": _kurtosis(real),
        "kurtosis_generated": _kurtosis(made),
    }


def _kurtosis(x: Tensor) -> float:
    x = x - x.mean()
    return (x.pow(4).mean() / x.square().mean().square().clamp_min(1e-300)).item()
