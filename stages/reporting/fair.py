"""Fair views: methods that had the same budget, of training images or of training operations, beside each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stages.reporting.page import Table
from stages.reporting.pairs import Difference, verdict
from stages.reporting.rows import Group, Row
from stages.reporting.trainings import APART, standard_error

WITHIN = 1.1  # budgets count as equal up to this factor
HEADINGS = ("method", "budget", "KID", "less the best", "interval", "than the best")
VIEWS = {"train_images": ("At equal training images", ""), "train_flops": ("At equal training FLOP", " PFLOP")}
NOTE = (
    f"Rows of one protocol whose budgets differ by at most {WITHIN - 1:.0%}, best KID first, with its standard error: "
    f"over trainings where a row has several, else over images. A difference is that of the same seeds, with {APART} "
    "standard errors to either side, which cover other trainings of rows that have several. A student's budget is that "
    "of its distillation: its teacher's comes on top."
)


def equal(rows: Sequence[Row], key: str) -> list[list[Row]]:
    """Rows of like budgets, at least two together; each budget is at most WITHIN times the smallest of its set."""
    found: list[list[Row]] = []
    for row in sorted((row for row in rows if row.get(key)), key=lambda row: float(row[key])):
        if found and row[key] <= WITHIN * found[-1][0][key]:
            found[-1].append(row)
        else:
            found.append([row])
    return [each for each in found if len(each) > 1]


def tables(groups: Sequence[Group], differences: Sequence[Difference]) -> list[Table]:
    """A table for each kind of budget that the rows have."""
    known = {(each.method, each.other): each for each in differences}
    known |= {(each.other, each.method): each.turned() for each in differences}
    found = []
    for key, (title, unit) in VIEWS.items():
        if not any(row.get(key) for group in groups for row in group.methods):
            continue
        sets = [rows for group in groups for rows in equal(group.methods, key)]
        rows = [line for each in sets for line in _lines(each, key, unit, known)]
        found.append(Table(f"fair-{key}", title, HEADINGS, rows, badge=HEADINGS[-1]))
    return found


def _lines(rows: Sequence[Row], key: str, unit: str, known: dict[tuple[str, str], Difference]) -> list[list[str]]:
    best, *others = sorted(rows, key=lambda row: (row["copies"], row["kid"]))

    def start(row: Row) -> list[str]:
        return [row["method"], _budget(row[key], unit), f"{row['kid']:.4f} +- {standard_error('kid', row):.4f}"]

    lines = [[*start(best), "-", "-", "the best"]]
    for row in others:
        each = known[row["method"], best["method"]]
        says = verdict(each.kid, each.kid_se, True)
        lines.append([*start(row), f"{each.kid:+.4f}", interval(each.kid, each.kid_se), says])
    return lines


def _budget(value: Any, unit: str) -> str:
    return f"{value / 1e15:.3g}{unit}" if unit else f"{value:,}"


def interval(value: float, error: float) -> str:
    """A value less and plus APART standard errors."""
    return f"{value - APART * error:+.4f} to {value + APART * error:+.4f}"
