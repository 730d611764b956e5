"""What several trainings of each method say about another training: a standard error of their mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

APART = 2  # a difference of this many standard errors is significant
COVERED = 0.95  # of other trainings, by the interval of APART standard errors to either side


def add_errors(rows: Sequence[dict[str, Any]], key: str) -> None:
    """Adds `KEY_training_se` to each row: the standard error of its mean over trainings; None for a single training.

    The standard deviation of two or three trainings says little of its own. So that of all rows, relative to their
    means, is taken to be one, as wide again as Student's t asks for so many trainings in all.
    """
    from scipy.special import stdtrit  # quantiles of t; here, because few reports have several trainings

    several = [row for row in rows if row.get(f"{key}_spread") is not None]
    freedom = sum(row["trainings"] - 1 for row in several)
    squares = sum((row["trainings"] - 1) * (row[f"{key}_spread"] / row[key]) ** 2 for row in several)
    wider = float(stdtrit(freedom, (1 + COVERED) / 2)) / APART if several else 0.0
    for row in rows:
        row[f"{key}_training_se"] = None
    for row in several:
        row[f"{key}_training_se"] = row[key] * wider * (squares / freedom / row["trainings"]) ** 0.5
