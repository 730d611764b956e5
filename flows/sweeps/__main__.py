"""Searches settings with Ray Tune: a sweep of params/sweeps, on this machine or on the cluster at RAY_ADDRESS.

python -m flows.sweeps            # list the sweeps
python -m flows.sweeps dit        # run one, or several in turn, or continue them after a kill

Each trial trains the method's parts on a share of the training images, samples, and is evaluated as in the
pipeline. Trials share what they have in common: a change of sampler settings trains nothing. The pipeline's own
stages up to `decompose`, `classifier` and `reference` must have run (dvc repro).

It writes reports/sweeps/NAME: trials.parquet (settings, metrics and history of every trial), trials.md (ranked),
settings.png, parallel.png; and the winner as a recipe, which you then run at full budget:

python -m stages.recipe dit-best && dvc repro

flows/sweeps/space.py says how a sweep is written.
"""

from __future__ import annotations

import argparse

from flows.sweeps import SWEEPS
from multiscale.core.terminal import announce
from stages.common.harness import guarded, show


def start(names: list[str]) -> None:
    """Runs sweeps without a dashboard and prints their tables; without a name prints the sweeps that there are."""
    if names:
        announce("loading torch, Ray and the results that trials start from")
        from flows.sweeps import search, space  # here, because their imports take seconds

        for name in names:
            space.load(name)  # all are refused before the first runs
        for name in names:
            print(search.run(name).read_text())
    else:
        show(SWEEPS)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m flows.sweeps", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="sweeps of params/sweeps; without one they are listed")
    guarded(start, names=parser.parse_args().names)


if __name__ == "__main__":
    main()
