"""What SSD's process keeps of an image, and how it relates to DDPM, in closed form."""

from __future__ import annotations

import math

from multiscale.methods.ssd.process import CLEAN, ScaleSpace


def information(snr: float) -> float:
    """The share of pixels, uniform on [-1, 1], that the signal dominates at a signal-to-noise ratio.

    1 - 2 int_0^1 Phi(-s x) dx with s = sqrt(snr) (arXiv 2603.08709, the motivation).
    """
    s = math.sqrt(snr)
    below = math.erfc(s / math.sqrt(2)) / 2  # Phi(-s)
    return 1 - 2 * below + math.sqrt(2 / math.pi) * math.expm1(-s * s / 2) / s


def excess_information(process: ScaleSpace) -> float | None:
    """The largest information of a DDPM state, over (r(t) / R)^2, where the process shrinks; None where it never does.

    At most 1: an image of the smaller size can hold what the noise has left, so the process may shrink there.
    """
    shares = {t: (process.resolution(t) / process.resolution(CLEAN)) ** 2 for t in process.transitions}
    snr = {t: process.alpha_bar[t] / (1 - process.alpha_bar[t]) for t in shares}
    return max((information(snr[t]) / share for t, share in shares.items()), default=None)


def distance_to_ddpm(process: ScaleSpace) -> float | None:
    """The largest difference to DDPM's posterior (arXiv 2006.11239, equations 6 and 7) over all steps.

    Of the weights of clean image and state, and of the variance. None for a process of several resolutions.
    """
    if process.transitions:
        return None
    differences = []
    for t in range(1, process.steps):
        before, after = process.alpha_bar[t - 1], process.alpha_bar[t]
        beta = 1 - after / before
        step = process.transition(t - 1, t)
        differences += [
            abs(step.clean_scalar - math.sqrt(before) * beta / (1 - after)),
            abs(step.state_scalar - math.sqrt(1 - beta) * (1 - before) / (1 - after)),
            abs(step.fresh_scalar**2 - beta * (1 - before) / (1 - after)),
        ]
    return max(differences)
