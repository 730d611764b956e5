"""The published claims beside what this experiment measured: which hold, which do not, which it cannot tell.

A claim is 'true' if all of the interval lies within its bounds, 'false' if all of it lies beyond one of them, and else
'not shown'. 'not measured' is one whose rows the experiment lacks, or that it does not test (`given`). An interval is
that of the ratio or difference itself: `trainings.APART` standard errors to either side, or for a ratio all values that
so many do not exclude (`ratio`).
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import hypot, isnan
from typing import Any

from pydantic import ValidationError

from stages.common import settings
from stages.common.paths import CLAIMS, TIMINGS
from stages.common.reading import read_yaml
from stages.reporting import analyses, tables
from stages.reporting.analyses import Lacking, Measured, Unmeasured
from stages.reporting.page import Section
from stages.reporting.rows import Row
from stages.reporting.trainings import APART, standard_error, widened
from stages.schema import claims as schema

Finding = dict[str, Any]  # about one claim, as claims.json holds it
Interval = tuple[float, float] | None  # its ends; None where nothing tells them
SECONDS = TIMINGS / "claims.json"  # with the claims about seconds, which are of one machine
IQR = 1.349  # interquartile range of a Gaussian, in standard deviations
HOLDS = ("true", "false", "not shown", "not measured")
MEETS = {"at_most": operator.le, "at_least": operator.ge, "below": operator.lt, "above": operator.gt}
TITLE = "Published claims"
HEADINGS = ["claim", "in our words", "holds", "measured", "interval", "asked", "published", "quantity", "why", "paper"]
KEY = (
    "A claim holds if all of the interval lies within its bounds, and does not if all of it lies beyond one; else it "
    "is not shown. "
    f"Intervals are {APART} standard errors to either side, of a ratio by Fieller's theorem; over the images of one "
    "training they do not cover other trainings. Every claim is about this experiment, whose data and budget are not "
    "the paper's."
)


@dataclass(frozen=True)
class Evidence:
    """What an experiment has: its rows by name, its methods, and what the stage `timing` measured here."""

    recipe: str
    rows: Mapping[str, Row]
    methods: list[str]
    sampling: Mapping[str, Any] = field(default_factory=dict)


def load() -> dict[str, schema.Claim]:
    """The claims of the file. Raises BadInput."""
    value = read_yaml(CLAIMS)
    try:
        return schema.Claims.model_validate(value).claims
    except ValidationError as error:
        raise settings.explain(error, value, CLAIMS) from None


def evaluate(claims: Mapping[str, schema.Claim], evidence: Evidence) -> dict[str, Finding]:
    """What the evidence says about each claim: id -> finding."""
    return {name: _about(claim) | _judged(claim, evidence) for name, claim in claims.items()}


def _about(claim: schema.Claim) -> Finding:
    return {
        "paper": f"{claim.paper} ({claim.version})",
        "says": claim.says,
        "quantity": str(claim.quantity),
        "published": claim.published[0] if claim.published and len(claim.published) == 1 else claim.published,
        "asked": str(claim.holds) if claim.holds else None,
    }


def _judged(claim: schema.Claim, evidence: Evidence) -> Finding:
    found: Finding = {"measured": None, "interval": None, "holds": "not measured", "protocol": None}
    try:
        for condition in claim.given:
            value, interval = measure(condition.quantity, evidence)
            if verdict(condition.holds, interval) != "true":
                what = f"{condition.quantity} is {value:.3g}, asked for {condition.holds}"
                raise Unmeasured(f"these rows do not test it: {what}")
        value, interval = measure(claim.quantity, evidence)
    except Unmeasured as reason:
        more = f"; recipe {claim.recipe} has what it needs" if isinstance(reason, Lacking) and claim.recipe else ""
        return found | {"why": _noted(f"{reason}{more}", claim)}
    assert claim.holds, "every quantity that is measured has bounds"
    holds = verdict(claim.holds, interval)
    share = {"true": "all", "false": "none", "not shown": "a part"}[holds]
    why = (
        f"{share} of the interval is {claim.holds}"
        if interval
        else "no interval: one training, one round, or too short a history"
    )
    ends = list(interval) if interval else None
    protocol = f"{evidence.recipe}: {_protocol(claim.quantity, evidence)}"
    return {"measured": value, "interval": ends, "holds": holds, "protocol": protocol, "why": _noted(why, claim)}


def _noted(why: str, claim: schema.Claim) -> str:
    return f"{why}. {claim.note}" if claim.note else why


def verdict(bounds: schema.Bounds, interval: Interval) -> str:
    """'true', 'false' or 'not shown' for the ends of an interval; None, or not a number: nothing is shown."""
    if interval is None or any(map(isnan, interval)):
        return "not shown"
    met = [[MEETS[key](end, bound) for end in interval] for key, bound in bounds.model_dump(exclude_unset=True).items()]
    if not all(map(any, met)):
        return "false"
    return "true" if all(map(all, met)) else "not shown"


def measure(quantity: schema.Quantity, evidence: Evidence) -> tuple[float, Interval]:
    """A quantity and its interval. Raises Unmeasured."""
    match quantity:
        case schema.Ratio():
            one, other = _columns(quantity.column, quantity.of, quantity.over, evidence)
            over, error = other
            if over <= APART * error if error is not None else not over:
                raise Unmeasured(f"{quantity}: the second is not distinguishable from zero")
            return ratio(one, other)
        case schema.Difference():
            (of, of_error), (minus, error) = _columns(quantity.column, quantity.of, quantity.minus, evidence)
            return around(of - minus, None if of_error is None or error is None else hypot(of_error, error))
        case schema.Losses():
            return around(*analyses.losses(quantity, evidence.methods))
        case schema.Conditioning():
            return around(*analyses.conditioning(quantity))
        case schema.Sparsity():
            return around(*analyses.sparsity(quantity))
        case schema.Masked():
            return around(*analyses.masked(quantity))
        case schema.Information():
            return around(*analyses.information(_present([quantity.row], evidence)))
        case schema.LikeDDPM():
            return around(*analyses.like_ddpm(_present(quantity.row, evidence)))
        case schema.Elsewhere():
            raise Unmeasured(f"no stage measures it: {quantity.needs}")


def around(value: float, error: float | None) -> tuple[float, Interval]:
    """A value, and APART of its standard error to either side."""
    return value, None if error is None else (value - APART * error, value + APART * error)


def ratio(one: Measured, other: Measured) -> tuple[float, Interval]:
    """A ratio and its interval by Fieller's theorem, for an `other` of more than APART standard errors.

    It holds every r for which one - r other is within APART standard errors of zero. An error that is scaled by the
    measured ratio is too small for a small one: a claim that it lies below a bound would hold too often.
    """
    (of, of_error), (over, over_error) = one, other
    value = of / over
    if of_error is None or over_error is None:
        return value, None
    lost = (APART * over_error / over) ** 2
    reach = APART * hypot(of_error * (1 - lost) ** 0.5, value * over_error) / over
    return value, ((value - reach) / (1 - lost), (value + reach) / (1 - lost))


def _present(names: list[str], evidence: Evidence) -> str:
    """The first of some rows that the experiment has. Raises Lacking."""
    for name in names:
        if name in evidence.rows:
            return name
    raise Lacking(f"needs the row {' or '.join(names)}")


def _columns(column: str, one: list[str], other: list[str], evidence: Evidence) -> tuple[Measured, Measured]:
    """A column of two rows with its standard errors. Raises Unmeasured for rows that cannot be compared."""
    lacking = [" or ".join(names) for names in (one, other) if not evidence.rows.keys() & {*names}]
    if lacking:
        raise Lacking(f"needs the row{'s' * (len(lacking) > 1)} {' and '.join(lacking)}")
    rows = [evidence.rows[_present(names, evidence)] for names in (one, other)]
    for row in rows:
        if row.get(column) is None:
            measured = f": {SECONDS} has what this machine measured" if column in schema.TIMED else ""
            raise Unmeasured(f"{column} of {row['method']} was not measured{measured}")
        if column in schema.ESTIMATED and row["copies"]:
            raise Unmeasured(f"{row['method']} copies training images")
    if column in schema.ESTIMATED and rows[0]["protocol"] != rows[1]["protocol"]:
        raise Unmeasured(f"{rows[0]['method']} and {rows[1]['method']} were measured by different protocols")
    first, second = ((float(row[column]), _error(column, row, evidence)) for row in rows)
    return first, second


def _error(column: str, row: Row, evidence: Evidence) -> float | None:
    """The standard error of a column; for seconds, a round's, widened for as few rounds as there are: one has none."""
    if column in schema.COUNTED:
        return 0.0
    if column == "train_seconds":
        error: float | None = row["train_seconds_training_se"]
        return error
    if column in schema.TIMED:
        if (freedom := evidence.sampling["rounds"] - 1) < 1:
            return None
        spread = row[f"spread{column.removeprefix('seconds_per_image')}"]
        return float(row[column] * widened(freedom) * spread / IQR)
    return standard_error(column, row)


def _protocol(quantity: schema.Quantity, evidence: Evidence) -> str:
    """How a quantity was measured, and what its interval covers."""
    if isinstance(quantity, schema.Losses):
        return f"means of the last {analyses.LAST} rows of each history, one training; interval by their scatter"
    if isinstance(quantity, schema.Masked):
        return f"latents of training images, at most {analyses.IMAGES} at equal strides; no interval over images"
    if isinstance(quantity, schema.Conditioning | schema.Sparsity):
        return "all training images; exact"
    if not isinstance(quantity, schema.Ratio | schema.Difference):
        return "in closed form"
    others = quantity.over if isinstance(quantity, schema.Ratio) else quantity.minus
    rows = [evidence.rows[_present(names, evidence)] for names in (quantity.of, others)]
    column, trainings = quantity.column, " and ".join(dict.fromkeys(str(row.get("trainings", 1)) for row in rows))
    if column in schema.COUNTED:
        return "counted; exact"
    if column == "train_seconds":
        return f"seconds on this machine, trainings of each: {trainings}; interval over these"
    if column in schema.TIMED:
        about = evidence.sampling
        return f"{about['device']}, medians of {about['rounds']} rounds; interval by the spread of a round"
    about = rows[0]["protocol"]
    several = [row["method"] for row in rows if row.get(f"{column}_training_se") is not None]
    covers = "trainings" if several else "images alone"
    alone = f" of {several[0]} alone" if len(several) == 1 else ""
    return (
        f"by {about['extractor']}, N = {about['n']}, {about['n_reference']} reference images, trainings of each: "
        f"{trainings}; interval over {covers}{alone}"
    )


def _number(value: object) -> str:
    if isinstance(value, list):
        return " to ".join(map(_number, value))
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def counted(findings: Mapping[str, Finding]) -> str:
    """How many claims hold, and so on, in one line."""
    counts = Counter(found["holds"] for found in findings.values())
    return "published claims: " + ", ".join(f"{counts[each]} {each}" for each in HOLDS)


def section(findings: Mapping[str, Finding]) -> Section:
    """The findings as a section of the page."""
    keys = ("says", "holds", "measured", "interval", "asked", "published", "quantity", "why", "paper")
    rows = [[name, *(_number(found[key]) for key in keys)] for name, found in findings.items()]
    return Section(TITLE, [KEY], HEADINGS, rows, [])


def markdown(findings: Mapping[str, Finding]) -> str:
    """The findings as Markdown."""
    shown = section(findings)
    return "\n".join([f"## {TITLE}", "", tables.markdown(shown.headings, shown.rows), "", KEY, ""])
