"""What several trainings of each method say about another training: a standard error of their mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

APART = 2  # a difference of this many standard errors is significant
COVERED = 0.95  # of other trainings, by the interval of APART standard errors to either side


def add_errors(rows: Sequence[dict[str, Any]], key: str) -> None:
    """Adds `KEY_training_se` to each row: the standard error of its mean over trainings; None for a single training.

    The standard deviation of two or three trainings says little of its own. So all methods are assumed to have the same
    standard deviation relative to their means, pooled over the rows; the error is widened to Student's t with the
    pooled degrees of freedom.
    """
    from scipy.special import stdtrit  # quantiles of t; here, because few reports have several trainings

    several = [row for row in rows if row["trainings"] > 1 and row.get(f"{key}_spread") is not None]
    alike = [row for row in several if row[key] > 0]  # KID has no bias, so that it may lie below 0
    squares = sum((row["trainings"] - 1) * (row[f"{key}_spread"] / row[key]) ** 2 for row in alike)
    of_all = sum(row["trainings"] - 1 for row in alike)
    for row in rows:
        row[f"{key}_training_se"] = None
    for row in several:
        own = row["trainings"] - 1
        spread, freedom = (
            (row[key] * (squares / of_all) ** 0.5, of_all) if row[key] > 0 else (row[f"{key}_spread"], own)
        )
        wider = float(stdtrit(freedom, (1 + COVERED) / 2)) / APART
        row[f"{key}_training_se"] = wider * spread / row["trainings"] ** 0.5
