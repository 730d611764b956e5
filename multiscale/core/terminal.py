"""What a command tells somebody who waits at a terminal."""

from __future__ import annotations

import sys


def announce(what: str) -> None:
    """Says on stderr what takes the next seconds; where that is no terminal nobody waits, and nothing is said."""
    if sys.stderr.isatty():
        print(f"{what} ...", file=sys.stderr, flush=True)
