"""The command line of every stage: arguments, progress bars, and errors in one line."""

from __future__ import annotations

import argparse
import errno
import gc
import importlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from multiscale.core.intact import Damaged
from multiscale.core.terminal import announce
from stages.common.errors import BadInput, damaged, missing, one_line, printable
from stages.common.paths import made_by, places_of

BATCHES = "training.batch, training.microbatch, sample.batch, timing.batch, run.batch"


def command(doc: str, arguments: dict[str, str] | None = None) -> NoReturn:
    """Runs the stage whose module calls this, from the command line; `arguments` maps positional ones to their help.

    A module calls it before its imports, which take seconds: `--help` and misspelt arguments are answered at once. Bad
    input ends in one line on stderr and exit code 2, a full disk or a diverged loss in one line and exit code 1.
    """
    name = f"stages.{Path(sys.argv[0]).stem}"
    parser = argparse.ArgumentParser(
        prog=f"python -m {name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Settings are read from params.yaml; `python -m stages.recipe` lists recipes for it.",
    )
    for argument, text in (arguments or {}).items():
        parser.add_argument(argument, help=text)
    given = parser.parse_args()
    gc.disable()  # what imports make stays; to look for garbage among it takes a tenth of their time
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    guarded(_run, name=name, given=vars(given))
    sys.exit()


def _run(name: str, given: dict[str, str]) -> None:
    """Calls a stage with the experiment, on `run.threads` threads, which decide the last bits of the results."""
    if "DVC_STAGE" in os.environ:  # DVC waits for us
        from stages.common import lockfile, orphans

        orphans.end_with(orphans.starter())
        lockfile.keep()
    announce("loading torch, the settings and the code of the stage")
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of NumPy and SciPy, which read it once: FD's last bits depend on it
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # of torch: threads that spin keep a core from other processes
    import torch  # here, because commands start without torch

    from multiscale.core.memory import keep_freed_memory
    from multiscale.core.models import ForeignModel
    from multiscale.core.storage import check_place
    from stages.common import settings

    stage = importlib.import_module(name)
    gc.freeze()
    gc.enable()
    params = settings.load()
    torch.set_num_threads(params.run.threads)
    keep_freed_memory()
    for place in places_of(name.rpartition(".")[2]):
        check_place(place, folder=False)
    try:
        stage.main(params, **given)
    except ForeignModel as error:
        raise BadInput(str(error)) from None


def launch(module: str, doing: str, /, **given: object) -> NoReturn:
    """Imports a module and calls its `run`; for commands that, as stages, read their arguments first.

    doing: what takes the seconds until the command shows something.
    """
    announce(doing)
    guarded(lambda: importlib.import_module(module).run(**given))
    sys.exit()


def guarded(action: Callable[..., None], **arguments: object) -> None:
    """Calls `action`; an error that the user can fix ends the process with one line on stderr, without a traceback."""
    try:
        action(**arguments)
    except BadInput as error:
        _end(f"error: {error}", 2)
    except Damaged as error:
        _end(f"error: {damaged(error)}", 2)
    except FileNotFoundError as error:
        text = str(error).partition("\n")[0]  # polars and pyarrow set no filename, it is a word of theirs
        name = error.filename or next((word for word in re.split("[ ':]+", text) if made_by(Path(word))), text)
        _end(f"error: {missing(name)}", 2)
    except FloatingPointError as error:
        _end(f"error: {error}", 1)
    except KeyboardInterrupt:
        _end("interrupted; the next run resumes from the last checkpoint", 130)
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
            _end(f"error: {one_line(error)}; allowed: smaller batches ({BATCHES})", 2)
        if is_disk_full(error):
            _end(f"error: the disk is full ({one_line(error)}); partial files were removed", 1)
        if isinstance(error, OSError) and error.filename:  # others tell of a fault in the code
            places = " -> ".join(str(path) for path in (error.filename, error.filename2) if path)
            _end(f"error: {places}: {error.strerror}; allowed: a place that can be read and written", 2)
        raise


def show(folder: Path) -> None:
    """Lists the YAML files of a folder, each with its first line, a comment. Raises BadInput where there are none."""
    from stages.common.reading import named, read_text  # here: most commands read no YAML before they import torch

    found = named(folder)
    if not found:
        raise BadInput(f"{folder}: holds no YAML files in {Path.cwd()}; run this in the folder of the project")
    for name in found:
        first = read_text(folder / f"{name}.yaml").partition("\n")[0]
        print(f"{name:20} {first.lstrip('# ')}")


def is_disk_full(error: Exception) -> bool:
    """Whether a write failed for lack of space, which safetensors and polars report in the text of their own errors."""
    full = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in full or any(os.strerror(code) in str(error) for code in full)


def tell(title: str, what: str) -> None:
    """A line on stderr about work that has no bar, behind the full one of the work before it."""
    print(f"{title}: {what}", file=sys.stderr, flush=True)


def _end(line: str, code: int) -> NoReturn:
    print(printable(line), file=sys.stderr)
    sys.exit(code)


@contextmanager
def progress(title: str, total: int, unit: str = "img", resumes: bool = False) -> Iterator[Callable[[int], None]]:
    """A progress bar, updated by calling it with the count so far; in a log file it prints a line every 10 seconds.

    resumes: the first count is what an earlier run has done, of which the speed and the time left are not made.
    """
    quiet = not sys.stderr.isatty()
    with tqdm(total=total, desc=title, unit=unit, unit_scale=total >= 10000, mininterval=10 if quiet else 0.2) as bar:

        def reach(done: int) -> None:
            nonlocal resumes
            if resumes and done:
                bar.reset()
                bar.initial = bar.n = bar.last_print_n = min(done, total)
                bar.refresh()
            resumes = False
            bar.update(min(done, total) - bar.n)

        yield reach
