"""A test of whether a method copies training images, calibrated on held-out images, which it cannot have copied.

The statistic is the distance to the nearest training image over that to the second nearest. It is small for a copy,
which is close to one image alone, but not for a typical image, which is close to many. Distances are between pixels,
mirrored or not: in a network's features, slight noise, blur or an autoencoder's reconstruction looks like another
image. A copy of an image of which the training set holds a near-duplicate goes undetected.
"""

from __future__ import annotations

import torch
from torch import Tensor

from multiscale.core.device import default_device
from multiscale.core.resize import area_to

RESOLUTION = 16  # that images are averaged to; finer ones detect altered copies less well (docs/evaluation.md)
SHARE = 0.01  # of held-out images below the threshold
CHANCE = 1e-3  # significance level: false alarms of a method that copies nothing
BLOCK = 4096


def small(pixels: Tensor) -> Tensor:
    """uint8 images (N, C, H, H) -> half precision (N, C, h, h) of at most 16 x 16 pixels."""
    return area_to(pixels.float(), min(RESOLUTION, pixels.shape[-1])).half()


def nearest(images: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """RMS distances (N, 2) to the two nearest training images, and the row (N,) of the nearest.

    Takes small images (N, C, h, h) and (M, C, h, h) in levels of 0 to 255, M >= 2.
    """
    distances, rows = [], []
    for x in images.split(BLOCK):
        best, at = torch.full((len(x), 2), torch.inf), torch.zeros(len(x), 2, dtype=torch.long)
        for start in range(0, len(training), BLOCK):
            found = _distances(x, training[start : start + BLOCK])
            near = found.topk(min(2, found.shape[1]), largest=False)
            best, order = torch.cat([best, near.values], 1).topk(2, largest=False)
            at = torch.cat([at, near.indices + start], 1).gather(1, order)
        distances.append(best)
        rows.append(at[:, 0])
    return torch.cat(distances) / images[0].numel() ** 0.5, torch.cat(rows)


def _distances(x: Tensor, y: Tensor) -> Tensor:
    """Euclidean distances (n, m), each the smaller of those of an image and its mirror image."""
    device = default_device()
    y = y.flatten(1).to(device, torch.float64)
    both = [torch.cdist(each.flatten(1).to(device, torch.float64), y) for each in (x, x.flip(-1))]
    found = torch.minimum(*both).float().cpu()
    return found.where(found > 1e-3, 0.0)  # rounding leaves equal images a tiny distance, whose ratio means nothing


def ratios(distances: Tensor) -> Tensor:
    """Distances (N, 2) -> ratios (N,): 0 for an exact copy, near 0 for a copy, near 1 for no copy."""
    return distances[:, 0] / distances[:, 1].clamp_min(torch.finfo(distances.dtype).tiny)


def verdict(ratios: Tensor, held_out: Tensor) -> tuple[float, bool]:
    """The share of ratios (N,) below the threshold that 1 % of held-out ratios (M,) are below; whether it shows copies.

    It does if held-out images in place of the generated ones would reach such a share with a probability below 1e-3.
    """
    from scipy.stats import hypergeom  # here, because only this test needs what takes a second to import

    n, m = len(ratios), len(held_out)
    rank = max(1, int(SHARE * (m + 1)))  # 1 / (m + 1) is the smallest share that m images can resolve
    count = int((ratios <= held_out.sort().values[rank - 1]).sum())
    # At least `count` ratios are below the held-out ratio of that rank if and only if the first count + rank - 1 of all
    # sorted ratios contain fewer held-out ones than the rank.
    chance = hypergeom.cdf(rank - 1, n + m, m, count + rank - 1)
    return count / n, bool(chance < CHANCE)
