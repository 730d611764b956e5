"""Whether a method copies its training images, judged by held-out images, which nobody can have copied.

The statistic is the distance to the nearest training image over that to the second nearest. A copy is near to one image
alone; a typical image is near to many, and a method that makes typical images is not accused. Distances are of pixels,
mirrored or not: a network's features take a little noise, blur or an autoencoder's rendering for another image. The
copy of an image that the training set holds twice, slightly altered, goes unseen.
"""

from __future__ import annotations

import torch
from scipy.stats import hypergeom
from torch import Tensor

from multiscale.core.device import default_device
from multiscale.core.resize import area_to

SIDE = 16  # pixels that images are averaged to: what is finer tells altered copies worse (docs/evaluation.md)
SHARE = 0.01  # of held-out images that lie below the limit
CHANCE = 1e-3  # that a method which copies nothing is flagged
BLOCK = 4096


def small(pixels: Tensor) -> Tensor:
    """uint8 images (N, C, H, H) -> half precision (N, C, h, h) of at most 16 pixels a side."""
    return area_to(pixels.float(), min(SIDE, pixels.shape[-1])).half()


def nearest(images: Tensor, training: Tensor) -> tuple[Tensor, Tensor]:
    """The root mean squared distances (N, 2) to the two nearest training images, and the nearest one's row (N,).

    Both are small images (N, C, h, h), (M, C, h, h), in levels of 0 to 255; M of 2 or more.
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
    """Euclidean distances (n, m), each the smaller of that to an image and to its mirror image."""
    device = default_device()
    y = y.flatten(1).to(device, torch.float64)
    both = [torch.cdist(side.flatten(1).to(device, torch.float64), y) for side in (x, x.flip(-1))]
    found = torch.minimum(*both).float().cpu()
    return found.where(found > 1e-3, 0.0)  # of equal images the matrix product leaves a rest, which has no ratio


def ratios(distances: Tensor) -> Tensor:
    """(N, 2) -> (N,): near 0 for a copy, 0 for an exact one, near 1 where no training image stands out."""
    return distances[:, 0] / distances[:, 1].clamp_min(torch.finfo(distances.dtype).tiny)


def verdict(ratios: Tensor, held_out: Tensor) -> tuple[float, bool]:
    """The share of images below the limit that 1 % of held-out images lie below, and whether they are copies.

    They are where so many would lie there by chance less than once in a thousand times, were they held-out images too.
    """
    n, m = len(ratios), len(held_out)
    rank = max(1, int(SHARE * (m + 1)))  # 1 / (m + 1) is the least share that m images can tell
    count = int((ratios <= held_out.sort().values[rank - 1]).sum())
    # At least `count` lie below the held-out image of that rank if, and only if, the first count + rank - 1 of all in
    # their order hold fewer held-out images than its rank.
    chance = hypergeom.cdf(rank - 1, n + m, m, count + rank - 1)
    return count / n, bool(chance < CHANCE)
