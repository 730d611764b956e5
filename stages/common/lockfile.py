"""dvc.lock when a kill cuts it short: DVC writes it in place. The last whole one is kept beside, for `flows.mend`."""

from __future__ import annotations

import subprocess
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from multiscale.core.temporary import write_whole

LOCK = Path("dvc.lock")
NO_TEXT = "\N{REPLACEMENT CHARACTER}"  # what `read` gives for bytes that are not UTF-8
KEPT = Path(".dvc/tmp/dvc.lock.kept")


def keep() -> None:
    """Keeps dvc.lock as it is now, if it is whole; it need not be, where another process is at work on it."""
    text = read(LOCK)
    if KEPT.parent.is_dir() and LOCK.exists() and text != read(KEPT) and not is_cut(text):
        write_whole(KEPT, text)


def is_cut(text: str) -> bool:
    """Whether a kill has cut this lock short: in a stage, or between two where the one that is kept goes on.

    The lock of the last commit is whole in any case: another branch may have fewer stages.
    """
    kept = read(KEPT)
    if text and text == kept:
        return False
    found, before = addresses(text), addresses(kept)
    return not found or (len(found) < len(before) and before[: len(found)] == found and text != committed())


def addresses(text: str) -> list[str]:
    """The stages in a lock, in its order; none if it is cut in one of them.

    An entry ends with its outputs, and the last of these with its size, or with the number of its files.
    """
    try:
        found = YAML(typ="safe").load(text)["stages"] if text.endswith("\n") and NO_TEXT not in text else {}
        last = list(found.values())[-1]["outs"][-1]
        whole = "size" in last and ("nfiles" in last or not last["md5"].endswith(".dir"))
    except (YAMLError, LookupError, TypeError, AttributeError):
        return []
    return list(found) if whole else []


def committed() -> str:
    """The lock of the last commit; '' where there is none."""
    command = ["git", "show", f"HEAD:./{LOCK}"]
    return subprocess.run(command, capture_output=True, text=True).stdout


def read(path: Path) -> str:
    """A file's text; '' where there is none."""
    return path.read_text("utf-8", "replace") if path.exists() else ""
