"""Distances between two sets of images from their features: KID with its standard error; FD, IS, precision, recall.

The last four are torch-fidelity's own functions. KID is too large for them at many images: they hold all pairs at once.
Beside them, the distance of two sets of vectors by which SwD's teacher is judged.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from multiscale.core.compat import make_torchvision_importable
from multiscale.core.device import default_device
from multiscale.core.streams import generator

make_torchvision_importable()
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric  # noqa: E402
from torch_fidelity.metric_isc import isc_features_to_metric  # noqa: E402
from torch_fidelity.metric_prc import prc_features_to_metric  # noqa: E402

BLOCK = 4096  # images: of all pairs, the kernels of so many times so many are in memory at once


def relative_distance(generated: Tensor, real: Tensor) -> float:
    """The energy distance of two sets of vectors (N, d), (M, d), over that of the real ones from their mean.

    2 E|x - y| - E|x - x'| - E|y - y'| (Szekely & Rizzo 2013) with means over distinct pairs: unbiased, so that equal
    laws are about 0 in any dimension, on either side of it. A set that holds the real mean alone has 1.
    """
    generated, real = generated.double(), real.double()

    def within(x: Tensor) -> Tensor:
        apart = torch.cdist(x, x)
        return (apart.sum() - apart.trace()) / (len(x) * (len(x) - 1))

    spread = within(real)
    distance = 2 * torch.cdist(generated, real).mean() - within(generated) - spread
    return float(distance / (2 * torch.cdist(real.mean(0, keepdim=True), real).mean() - spread))


def kid(generated: Tensor, real: Tensor, labels: Tensor | None = None) -> tuple[float, float]:
    """The Kernel Inception Distance of features (N, d), (M, d) over all pairs, and its standard error; N of 4 or more.

    The unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3 (arXiv 1801.01401, eq. 4). The error
    is that over the generated images; the real ones are held fixed, as they are the same for every method. Then KID is
    a U-statistic, the mean of g(x_i, x_j) = k(x_i, x_j) - E k(x_i, Y) - E k(x_j, Y) over pairs, and a constant. Its
    variance is E U^2 - (E g)^2, and the mean of g_ij g_kl over distinct i, j, k, l estimates (E g)^2 without bias.

    labels (N,) are those that were dealt out in turn: other seeds change no class's share, so what classes differ by
    is no error. None for images whose classes are as random as they are.
    """
    n, m = len(generated), len(real)
    classes = _one_hot(labels, n).to(default_device())
    to_real = classes.new_zeros(n)
    for i, _, kernel in _kernels(generated, real):
        to_real[i] += kernel.sum(1) / m
    rows, squares = torch.zeros_like(classes), 0.0  # the sums of g over the images of each class, and of its square
    for i, j, kernel in _kernels(generated, generated):
        g = kernel - to_real[i, None] - to_real[None, j]
        if i == j:
            g.fill_diagonal_(0)
        rows[i] += g @ classes[j]
        squares += g.square().sum().item()
    within_real = sum((kernel.sum() - (i == j) * kernel.trace()).item() for i, j, kernel in _kernels(real, real))
    value = rows.sum().item() / (n * (n - 1)) + within_real / (m * (m - 1))

    # What is left of g without its mean between any two classes, which no seed moves. Deviations of an image from one
    # class and from another may cancel: `by_class` takes them out of the squares, and is 0 without classes.
    sums, sizes = classes.T @ rows, classes.sum(0)
    pairs, others = sizes[:, None] * sizes - sizes.diag(), sizes - classes
    rows -= others * (classes @ (sums / pairs))
    squares -= (sums.square() / pairs).sum().item()
    left = rows.sum(1).square().sum().item()
    by_class = (rows.square() / others).sum().item() - left / (n - 1)
    freedom = (n - 1) / (n - len(sizes))
    variance = freedom * (4 * left - 2 * squares + 4 * by_class) / (n * (n - 1) * (n - 2) * (n - 3))
    least = (
        2 * squares / (n * (n - 1)) ** 2
    )  # what pairs add to what single images do: all of it for images like the real
    return value, max(variance, least) ** 0.5


def _one_hot(labels: Tensor | None, count: int) -> Tensor:
    """The class of each image (N, classes); a single class without labels, or where one has a single image."""
    if labels is not None:
        found, numbers = labels.unique(return_inverse=True)
        if numbers.bincount().min() > 1:
            return F.one_hot(numbers, len(found)).double()
    return torch.ones(count, 1, dtype=torch.float64)


def _kernels(first: Tensor, second: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """The kernel of all pairs block by block, in double precision: KID is a small difference of large means."""
    device = default_device()
    for i in range(0, len(first), BLOCK):
        x = first[i : i + BLOCK].to(device, torch.float64)
        for j in range(0, len(second), BLOCK):
            y = second[j : j + BLOCK].to(device, torch.float64)
            yield slice(i, i + BLOCK), slice(j, j + BLOCK), (x @ y.T / x.shape[1] + 1) ** 3


def distances(
    generated: Tensor, real: Tensor, logits: Tensor, labels: Tensor | None, *, is_splits: int, prc_neighborhood: int
) -> dict[str, float]:
    """KID with its standard error, FD, IS, precision and recall.

    generated (N, d) and real (M, d) are features of one layer, logits (N, classes) those of the generated images;
    labels as for `kid`. Precision and recall depend on how many images each set has, so a fixed random subset of the
    larger is taken.
    """
    value, error = kid(generated, real, labels)
    fd = fid_statistics_to_metric(fid_features_to_statistics(generated), fid_features_to_statistics(real), False)
    score = isc_features_to_metric(logits, splits=is_splits)
    fewer = min(len(generated), len(real))
    prc = prc_features_to_metric(
        subset(generated, fewer),
        subset(real, fewer),
        prc_neighborhood=prc_neighborhood,
        save_cpu_ram=True,
        verbose=False,
    )
    return {
        "kid": value,
        "kid_se": error,
        "fd": fd["frechet_inception_distance"],
        "inception_score": score["inception_score_mean"],
        "inception_score_std": score["inception_score_std"],
        "precision": prc["precision"],
        "recall": prc["recall"],
    }


def subset(rows: Tensor, count: int) -> Tensor:
    """`count` of the rows, at random: every so many-th would leave out classes where these alternate."""
    return rows[torch.randperm(len(rows), generator=generator(0, "subset"))[:count]]
