"""Reads the YAML that people write. Imports no torch, so that flows start without it."""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import SafeConstructor
from ruamel.yaml.error import YAMLError
from ruamel.yaml.scanner import Scanner

from stages.common.errors import BadInput, one_line

LARGEST = 1_000_000  # bytes of a file
MOST = 100_000  # values in a file, those of an alias counted at each place
LONGEST = 1000  # bits of an integer
DEEPEST = 100  # mappings and lists in each other


class _Scanner(Scanner):
    """Stops at what is nested deeply, as its time grows with the square of the depth."""

    def fetch_more_tokens(self) -> Any:
        if self.flow_level + len(self.indents) > DEEPEST:
            raise YAMLError(f"nested too deeply; allowed: {DEEPEST} mappings and lists in each other")
        return super().fetch_more_tokens()


class _Constructor(SafeConstructor):
    """Stops at merges that multiply before anything is made of them."""

    merged = 0  # keys of all mappings, those of a merged one counted at each place

    def flatten_mapping(self, node: Any) -> None:
        super().flatten_mapping(node)
        self.merged += len(node.value)
        if self.merged > MOST:
            raise YAMLError(f"merged keys stand for too much; allowed: {MOST} in all")


def named(folder: Path) -> list[str]:
    """The names of the YAML files in a folder: recipes, sweeps."""
    return sorted(path.stem for path in folder.glob("*.yaml"))


def read_bytes(path: Path) -> bytes:
    """A file that is no pipe, no device and not too large to be of settings. Raises BadInput."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode) or found.st_size > LARGEST:
            raise BadInput(f"{path}: no file of YAML; allowed: a regular file of at most {LARGEST} bytes")
        return path.read_bytes()
    except FileNotFoundError:
        raise BadInput(f"{path}: the file is missing") from None
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; allowed: a YAML file") from None


def read_text(path: Path) -> str:
    """The same as text. Raises BadInput."""
    try:
        return read_bytes(path).decode()
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: not valid YAML: {error}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML 1.2 file, as DVC reads it. Raises BadInput."""
    return parse_yaml(read_text(path), path)


def parse_yaml(text: str, path: Path) -> dict[str, Any]:
    """A mapping from the text of a YAML 1.2 file. Raises BadInput."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Scanner, yaml.Constructor = _Scanner, _Constructor
    try:
        value = yaml.load(text)
    except YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}:" if where else ""
        reason = str(getattr(error, "problem", None) or error)
        raise BadInput(f"{path}:{line} not valid YAML: {one_line(reason)}") from None
    except Exception as error:  # of all kinds, from values that the tag or the form promises and that cannot be
        raise BadInput(f"{path}: not valid YAML: {one_line(error)}") from None
    _check_size(value, path)
    if not isinstance(value, dict):
        raise BadInput(f"{path}: holds {type(value).__name__}; allowed: a mapping of sections")
    return value


def _check_size(value: Any, path: Path) -> None:
    """Raises BadInput for what nobody means, and what would take for ever to check or to show."""
    left, count = [value], 0
    while left:
        node = left.pop()
        count += 1
        if count > MOST:
            raise BadInput(f"{path}: aliases stand for too much; allowed: {MOST} values in all")
        if isinstance(node, int) and node.bit_length() > LONGEST:
            raise BadInput(f"{path}: an integer of {node.bit_length()} bits; allowed: {LONGEST}")
        if isinstance(node, str) and "${" in node:  # an override would write here what it stands for, be it a password
            raise BadInput(f"{path}: {node[:100]!r}: a reference; allowed: plain values")
        if isinstance(node, dict):
            left += [*node, *node.values()]
        elif isinstance(node, list | tuple | set | frozenset):
            left += node
