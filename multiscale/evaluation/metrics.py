"""Metrics of two sets of features: KID with its standard error, FD, Inception Score, precision and recall.

All but KID are torch-fidelity's. Its KID holds all pairs in memory at once.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from multiscale.core.compat import make_torchvision_importable
from multiscale.core.device import default_device
from multiscale.core.streams import generator

BLOCK = 4096  # images; a block of BLOCK x BLOCK kernels is in memory at once


def kid(
    generated: Tensor, real: Tensor, labels: Tensor | None = None, within_real: float | None = None
) -> tuple[float, float]:
    """The Kernel Inception Distance of features (N, d), (M, d) over all pairs, and its standard error; N >= 4.

    The unbiased squared maximum mean discrepancy with the kernel (x.y / d + 1)^3 (arXiv 1801.01401, eq. 4). The error
    is that of the generated images; the real ones, the same for every method, are held fixed. Then KID is a constant
    plus a U-statistic, the mean of g(x_i, x_j) = k(x_i, x_j) - E k(x_i, Y) - E k(x_j, Y) over pairs. Its variance is
    E U^2 - (E g)^2, and the mean of g_ij g_kl over distinct i, j, k, l estimates (E g)^2 without bias.

    labels (N,): the classes, if their shares are fixed and differences between classes are no error; None if the
    classes are drawn at random. within_real: what `within` gives of the real features, if it is known.
    """
    return kid_by_image(generated, real, labels, within_real)[:2]


def kid_by_image(
    generated: Tensor, real: Tensor, labels: Tensor | None = None, within_real: float | None = None
) -> tuple[float, float, Tensor]:
    """`kid`, and what each generated image adds to it, (N,) in float64: its influence, up to a constant.

    2 (E k(x_i, X) - E k(x_i, Y)), whose variance over N estimates the squared standard error. The difference of two
    methods' contributions, image by image, gives that of the difference of their KIDs in the same way.
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
    value = rows.sum().item() / (n * (n - 1)) + (within(real) if within_real is None else within_real)
    # Over the others j: sum k(x_i, x_j) = sum g(x_i, x_j) + (n - 1) E k(x_i, Y) + sum E k(x_j, Y).
    added = 2 * (rows.sum(1) + to_real.sum() - to_real) / (n - 1)

    # Subtracts the mean of g between any two classes, which does not depend on the seeds. Deviations of an image from
    # two classes may cancel: `by_class` corrects the squares for it, and is 0 with one class.
    sums, sizes = classes.T @ rows, classes.sum(0)
    pairs, others = sizes[:, None] * sizes - sizes.diag(), sizes - classes
    rows -= others * (classes @ (sums / pairs))
    squares -= (sums.square() / pairs).sum().item()
    left = rows.sum(1).square().sum().item()
    by_class = (rows.square() / others).sum().item() - left / (n - 1)
    freedom = (n - 1) / (n - len(sizes))
    variance = freedom * (4 * left - 2 * squares + 4 * by_class) / (n * (n - 1) * (n - 2) * (n - 3))
    least = 2 * squares / (n * (n - 1)) ** 2  # the contribution of pairs, the only one if both distributions are equal
    return value, max(variance, least) ** 0.5, added.cpu()


def within(real: Tensor) -> float:
    """The mean kernel of two different rows of features (M, d): of KID the part of the real images alone.

    It takes most of the time where these are many, and is the same for all methods.
    """
    m = len(real)
    total = sum((kernel.sum() - (i == j) * kernel.trace()).item() for i, j, kernel in _kernels(real, real))
    return total / (m * (m - 1))


def _one_hot(labels: Tensor | None, count: int) -> Tensor:
    """The class of each image (N, classes); one class without labels, or if some class has a single image."""
    if labels is not None:
        found, numbers = labels.unique(return_inverse=True)
        if numbers.bincount().min() > 1:
            return F.one_hot(numbers, len(found)).double()
    return torch.ones(count, 1, dtype=torch.float64)


def _kernels(first: Tensor, second: Tensor) -> Iterator[tuple[slice, slice, Tensor]]:
    """The kernels of all pairs, block by block in float64: KID is a small difference of large means."""
    device = default_device()
    for i in range(0, len(first), BLOCK):
        x = first[i : i + BLOCK].to(device, torch.float64)
        for j in range(0, len(second), BLOCK):
            y = second[j : j + BLOCK].to(device, torch.float64)
            yield slice(i, i + BLOCK), slice(j, j + BLOCK), (x @ y.T / x.shape[1] + 1) ** 3


Statistics = dict[str, np.ndarray]  # `mu` (d,) and `sigma` (d, d) of features, in float64


def statistics(found: Tensor) -> Statistics:
    """The mean and covariance of features (N, d)."""
    make_torchvision_importable()
    # Here, because torch-fidelity takes long to import, and few commands need it.
    from torch_fidelity.metric_fid import fid_features_to_statistics

    made: Statistics = fid_features_to_statistics(found)
    return made


def frechet(generated: Tensor, real: Tensor | Statistics) -> float:
    """The Frechet distance of the Gaussians of two sets of features; of real ones the statistics are enough."""
    make_torchvision_importable()
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    made, known = statistics(generated), statistics(real) if isinstance(real, Tensor) else real
    known = {key: value.astype(made[key].dtype) for key, value in known.items()}
    return float(fid_statistics_to_metric(made, known, False)["frechet_inception_distance"])


def distances(
    generated: Tensor,
    real: Tensor,
    logits: Tensor,
    *,
    is_splits: int,
    prc_neighborhood: int,
    known: Statistics | None = None,
    equal: bool = True,
) -> dict[str, float]:
    """FD, Inception Score, precision and recall, by torch-fidelity.

    generated (N, d) and real (M, d): features of one layer; logits (N, classes) of the generated images. known:
    statistics that FD is against, in place of those of `real`. Precision and recall depend on the size of both sets:
    with `equal` the larger is replaced by a fixed random subset, else both are taken whole (ADM's).
    """
    make_torchvision_importable()
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    fd = frechet(generated, real if known is None else known)
    score = isc_features_to_metric(logits, splits=is_splits)
    if equal:
        fewer = min(len(generated), len(real))
        generated, real = subset(generated, fewer), subset(real, fewer)
    prc = prc_features_to_metric(generated, real, prc_neighborhood=prc_neighborhood, save_cpu_ram=True, verbose=False)
    return {
        "fd": fd,
        "inception_score": score["inception_score_mean"],
        "inception_score_std": score["inception_score_std"],
        "precision": prc["precision"],
        "recall": prc["recall"],
    }


def subset(rows: Tensor, count: int) -> Tensor:
    """A random subset of `count` rows; equal strides could leave out classes that alternate."""
    return rows[torch.randperm(len(rows), generator=generator(0, "subset"))[:count]]
