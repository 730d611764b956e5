"""What every stage's command shares: arguments, progress with an ETA, and errors that are one line."""

from __future__ import annotations

import argparse
import errno
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from tqdm import tqdm

from stages.common.errors import BadInput, missing


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
    guarded(_on_its_threads, stage=stage, given=vars(given))


def _on_its_threads(stage: Callable[..., None], given: dict[str, str]) -> None:
    """Calls a stage with as many threads as the experiment says: the same bits whatever else runs on the machine."""
    import torch  # flows take `guarded` from here, and start without it

    from stages.common import settings

    torch.set_num_threads(settings.load("run").run.threads)
    stage(**given)


def guarded(action: Callable[..., None], **arguments: object) -> None:
    """Calls `action`; what the user can mend ends the process with one line on stderr instead of a traceback."""
    try:
        action(**arguments)
    except BadInput as error:
        _end(f"error: {error}", 2)
    except FileNotFoundError as error:
        name = error.filename or str(error).splitlines()[0]  # polars and pyarrow have the name in the text alone
        _end(f"error: {missing(name)}", 2)
    except FloatingPointError as error:
        _end(f"error: {error}", 1)
    except KeyboardInterrupt:
        _end("interrupted; the next start goes on from the last checkpoint", 130)
    except Exception as error:
        if not is_disk_full(error):
            raise
        _end(f"error: the disk is full ({' '.join(str(error).split())}); nothing half-written was left", 1)


def is_disk_full(error: Exception) -> bool:
    """Whether a write failed for want of space: safetensors and polars say so in the text of errors of their own."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in full or any(os.strerror(code) in str(error) for code in full)


def _prog() -> str:
    return f"python -m stages.{os.path.splitext(os.path.basename(sys.argv[0]))[0]}"


def _end(line: str, code: int) -> NoReturn:
    print(line.replace("\n", " "), file=sys.stderr)
    sys.exit(code)


@contextmanager
def progress(title: str, total: int, unit: str = "img") -> Iterator[Callable[[int], None]]:
    """A bar with rate and ETA; call it with the count so far. In a log file it prints a line every 10 seconds."""
    quiet = not sys.stderr.isatty()
    with tqdm(total=total, desc=title, unit=unit, unit_scale=total >= 10000, mininterval=10 if quiet else 0.2) as bar:

        def reach(done: int) -> None:
            bar.update(min(done, total) - bar.n)

        yield reach
