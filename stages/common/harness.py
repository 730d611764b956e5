"""What every stage's command shares: arguments, threads, progress with an ETA, and errors that are one line."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from stages.common.settings import BadInput


def command(stage: Callable[..., None], doc: str, arguments: dict[str, str] | None = None) -> None:
    """Runs a stage from the command line.

    `arguments` maps the stage's positional arguments to their help. Bad input ends in one line on stderr and exit
    code 2, a full disk or a diverged loss in one line and exit code 1.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m stages.{stage.__module__.rpartition('.')[2]}" if stage.__module__ != "__main__" else _prog(),
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Settings come from params/experiment.yaml; `python -m stages.recipe` lists the recipes that fill it.",
    )
    for name, text in (arguments or {}).items():
        parser.add_argument(name, help=text)
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        stage(**vars(given))
    except BadInput as error:
        sys.exit(_say(f"error: {error}", 2))
    except FloatingPointError as error:
        sys.exit(_say(f"error: {error}", 1))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        sys.exit(
            _say(f"error: the disk is full ({error.filename or error.strerror}); nothing half-written was left", 1)
        )
    except KeyboardInterrupt:
        sys.exit(_say("interrupted; the next start goes on from the last checkpoint", 130))


def _prog() -> str:
    return f"python -m stages.{os.path.splitext(os.path.basename(sys.argv[0]))[0]}"


def _say(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code


@contextmanager
def progress(title: str, total: int, unit: str = "img") -> Iterator[Callable[[int], None]]:
    """A bar with rate and ETA; call it with the count so far. In a log file it prints a line every 10 seconds."""
    quiet = not sys.stderr.isatty()
    with tqdm(total=total, desc=title, unit=unit, unit_scale=total >= 10000, mininterval=10 if quiet else 0.2) as bar:

        def reach(done: int) -> None:
            if bar.n == 0 and done > 0 and done != bar.last_print_n:
                bar.initial = 0
            bar.update(min(done, total) - bar.n)

        yield reach
