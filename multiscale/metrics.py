"""Distances between two sets of images from their features, and between two sets of vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from multiscale.core.compat import make_torchvision_importable

make_torchvision_importable()
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric  # noqa: E402
from torch_fidelity.metric_isc import isc_features_to_metric  # noqa: E402
from torch_fidelity.metric_kid import kid_features_to_metric  # noqa: E402
from torch_fidelity.metric_prc import prc_features_to_metric  # noqa: E402


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


def distances(
    generated: Tensor,
    real: Tensor,
    logits: Tensor,
    *,
    kid_subsets: int,
    kid_subset_size: int,
    is_splits: int,
    prc_neighborhood: int,
) -> dict[str, float]:
    """KID with its spread over subsets, FD, IS, precision and recall.

    generated (N, d) and real (M, d) are features of one layer, logits (N, classes) those of the generated images.
    """
    kid = kid_features_to_metric(
        generated, real, kid_subsets=kid_subsets, kid_subset_size=kid_subset_size, verbose=False
    )
    fd = fid_statistics_to_metric(fid_features_to_statistics(generated), fid_features_to_statistics(real), False)
    score = isc_features_to_metric(logits, splits=is_splits)
    prc = prc_features_to_metric(generated, real, prc_neighborhood=prc_neighborhood, verbose=False)
    return {
        "kid": kid["kernel_inception_distance_mean"],
        "kid_std": kid["kernel_inception_distance_std"],
        "fd": fd["frechet_inception_distance"],
        "inception_score": score["inception_score_mean"],
        "inception_score_std": score["inception_score_std"],
        "precision": prc["precision"],
        "recall": prc["recall"],
    }
