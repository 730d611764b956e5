"""Prints the leaderboard in ten columns, which fit a terminal of 100; reports/report.md has the others.

python -m stages.summary             # all methods and floors, once all of them are measured
python -m stages.summary msf dit     # these methods, as soon as they are
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from stages.common.harness import launch

if __name__ == "__main__":  # first: the imports below take seconds
    parser = argparse.ArgumentParser(
        prog="python -m stages.summary", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="*", help="methods of the experiment; all, and the floors, by default")
    launch("stages.summary", "reading the leaderboard", **vars(parser.parse_args()))

from stages.common import settings
from stages.common.errors import refuse
from stages.common.paths import EXPERIMENT
from stages.reporting import leaderboard, measured
from stages.reporting.rows import Group, grouped, rows_of
from stages.reporting.tables import columns
from stages.schema import Experiment

COLUMNS = {
    "method": "method",
    "works_on": "works on",
    "kid": "KID-{metric}",
    "recall": "recall",
    "label_accuracy": "accuracy",
    "seconds_per_image": "s/image",
    "network_calls": "calls",
    "flops_per_image": "GFLOP",
    "parameters": "params",
    "train_images": "images",
}
WORDS = 2  # columns of words, which stand on the left
KEY = """\
KID: lower is better, +- one standard error over the images of one training. Accuracy: how often a
classifier sees the class that was asked for. Calls, GFLOP: of one image. Images: seen in training."""


def run(methods: list[str]) -> None:
    """Prints the rows of some methods, or the whole leaderboard."""
    params = settings.load()
    if methods:
        print(text(grouped(rows_of(_only(methods, params)))))
    else:
        groups = grouped(rows_of(params))
        print(text(measured.with_seconds(groups, measured.of_sampling(), params)))


def _only(methods: Sequence[str], params: Experiment) -> Experiment:
    """The experiment with these methods alone, and no floors."""
    for name in methods:
        if name not in params.methods:
            raise refuse(EXPERIMENT, "methods", name, f"of {', '.join(params.methods)}")
    evaluate = params.evaluate.model_copy(update={"floors": []})
    return params.model_copy(update={"methods": {name: params.methods[name] for name in methods}, "evaluate": evaluate})


def text(groups: Sequence[Group]) -> str:
    """A table for each protocol, and what its columns mean; columns without a value are left out."""
    return "\n\n".join([*(_table(group) for group in groups), KEY])


def _table(group: Group) -> str:
    heads, methods, floors = leaderboard.table(group, None, COLUMNS)
    shown = [column for column in zip(heads, *methods, *floors) if set(column[1:]) != {"-"}]
    lines = columns(list(zip(*shown)), WORDS)
    rule, end = "-" * len(lines[0]), 1 + len(methods)
    return "\n".join([lines[0], rule, *lines[1:end], *([rule, *lines[end:]] if floors else [])])
