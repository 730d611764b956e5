"""Methods compared pair by pair: the same seeds and classes, so that what images share does not count as an error.

The difference of two KIDs has the variance of the difference of what each image adds to them, image by image
(`multiscale.evaluation.metrics.kid_by_image`). To it comes the variance over trainings of each row that has several: of
two such rows no difference is shown here which the leaderboard's notes call not significant. A part of that variance is
of the images, which counts twice, so that an interval may be too wide, at most by the root of 2. The intervals of
single trainings, and of accuracy, cover other seeds, not other trainings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import hypot
from typing import Any

import polars as pl

from stages.common.paths import PAIRED
from stages.reporting.rows import Group, Row, methods_of
from stages.reporting.trainings import APART
from stages.schema import Experiment

COLUMNS = ("kid", "correct")  # of an image: what it adds to KID, and whether it shows its class


@dataclass(frozen=True)
class Difference:
    """Of a row and another one of the same protocol: value and standard error; None where it was not measured."""

    method: str
    other: str
    kid: float
    kid_se: float
    accuracy: float | None
    accuracy_se: float | None

    def turned(self) -> Difference:
        """The other one less this one."""
        accuracy = None if self.accuracy is None else -self.accuracy
        return Difference(self.other, self.method, -self.kid, self.kid_se, accuracy, self.accuracy_se)


def verdict(value: float | None, error: float | None, low: bool) -> str:
    """'better', 'worse', or 'not shown' if zero lies within the interval; low: less is better."""
    if value is None or error is None or abs(value) <= APART * error:
        return "not shown"
    return "better" if (value < 0) is low else "worse"


def compare(groups: Sequence[Group], params: Experiment) -> list[Difference]:
    """The differences of each two rows of one protocol, in the order of the tables."""
    found = []
    for group in groups:
        dealt = group.protocol["labels"] == "uniform"
        images = {row["method"]: _images(row["method"], params) for row in group.methods}
        found += [_difference(one, other, images, dealt) for one, other in combinations(group.methods, 2)]
    return found


def _images(name: str, params: Experiment) -> pl.DataFrame:
    """What each image of a method adds, by seed; means over its trainings."""
    frames = [pl.read_parquet(PAIRED / f"{each}.parquet") for each in methods_of(name, params)]
    means = [pl.col(column).cast(pl.Float64).mean() for column in COLUMNS]
    return pl.concat(frames).group_by("seed", maintain_order=True).agg(pl.col("label").first(), *means)


def _difference(one: Row, other: Row, images: dict[str, pl.DataFrame], dealt: bool) -> Difference:
    both = images[one["method"]].join(images[other["method"]], on="seed", suffix="_other", maintain_order="left")
    several = [row["kid_training_se"] for row in (one, other) if row.get("kid_training_se") is not None]
    kid, kid_se = one["kid"] - other["kid"], hypot(_error(both, "kid", dealt), *several)
    known = one["label_accuracy"] is not None and other["label_accuracy"] is not None
    accuracy = one["label_accuracy"] - other["label_accuracy"] if known else None
    return Difference(
        one["method"], other["method"], kid, kid_se, accuracy, _error(both, "correct", dealt) if known else None
    )


def _error(both: pl.DataFrame, column: str, dealt: bool) -> float:
    """The standard error of the mean difference; where classes have fixed shares, of that within the classes."""
    apart = both.select("label", gap=pl.col(column) - pl.col(f"{column}_other"))
    classes = apart["label"].n_unique() if dealt else 1
    mean = pl.col("gap").mean().over("label") if dealt else pl.col("gap").mean()
    squares: Any = apart.select((pl.col("gap") - mean).pow(2).sum()).item()
    return float((squares / max(1, len(apart) - classes) / len(apart)) ** 0.5)


def frame(differences: Sequence[Difference]) -> pl.DataFrame:
    """The differences as a table of numbers."""
    schema = {"method": pl.String, "other": pl.String, **dict.fromkeys(("kid", "kid_se"), pl.Float64)}
    schema |= dict.fromkeys(("accuracy", "accuracy_se"), pl.Float64)
    return pl.DataFrame([vars(each) for each in differences], schema=schema)
