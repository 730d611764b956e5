"""What several trainings of each method say about another training: a standard error of their mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import mul
from typing import Any

APART = 2  # a difference of this many standard errors is significant
COVERED = 0.95  # of other trainings, by the interval of APART standard errors to either side
ROUNDS = 200  # of an estimate that mostly settles in a few


def widened(freedom: float) -> float:
    """How much wider a standard error becomes that so many degrees of freedom tell: APART of it cover COVERED."""
    from scipy.special import stdtrit  # quantiles of Student's t; here, because few reports need them

    return float(stdtrit(freedom, (1 + COVERED) / 2)) / APART


def add_errors(rows: Sequence[dict[str, Any]], key: str) -> None:
    """Adds `KEY_training_se` to each row: the standard error of its mean over trainings; None for a single training.

    The standard deviation of two or three trainings says little of its own. A row knows the part of it that is of other
    images, `KEY_se` where there is one, which does not shrink with the mean. The rest is assumed to be the same for all
    methods relative to their means, and pooled over the rows; the error is widened to Student's t with the pooled
    degrees of freedom.
    """
    several = [row for row in rows if row["trainings"] > 1 and row.get(f"{key}_spread") is not None]
    alike = [row for row in several if row[key] > 0]  # KID has no bias, so that it may lie below 0
    relative, of_all = _relative(alike, key), sum(row["trainings"] - 1 for row in alike)
    for row in rows:
        row[f"{key}_training_se"] = None
    for row in several:
        spread, freedom = (
            ((relative * row[key] ** 2 + _of_images(row, key)) ** 0.5, of_all)
            if row[key] > 0
            else (row[f"{key}_spread"], row["trainings"] - 1)
        )
        row[f"{key}_training_se"] = widened(freedom) * spread / row["trainings"] ** 0.5


def _relative(rows: Sequence[dict[str, Any]], key: str) -> float:
    """The variance over trainings that images do not explain, relative to the squared mean: the likeliest for all rows.

    By Fisher scoring: a row counts by how well it tells it, all alike where images explain nothing.
    """
    known = [(row["trainings"] - 1, row[key], row[f"{key}_spread"], _of_images(row, key)) for row in rows]
    found = max(((spread / mean) ** 2 for _, mean, spread, _ in known), default=0.0)
    for _ in range(ROUNDS):
        if not found:
            break
        weights = [freedom * (mean**2 / (found * mean**2 + images)) ** 2 for freedom, mean, _, images in known]
        rests = [(spread**2 - images) / mean**2 for _, mean, spread, images in known]
        found = max(0.0, sum(map(mul, weights, rests)) / sum(weights))
    return found


def _of_images(row: dict[str, Any], key: str) -> float:
    """The variance over the images of one training; 0 of what has none."""
    return float(row.get(f"{key}_se") or 0.0) ** 2


def standard_error(key: str, row: Mapping[str, Any]) -> float:
    """Of a column: over trainings if there are several and it has a spread over them, else over images or prompts."""
    over_trainings = row.get(f"{key}_training_se")
    return float(row[f"{key}_se"] if over_trainings is None else over_trainings)
