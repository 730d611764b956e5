"""Reads `params/experiment.yaml` and recipes, and turns whatever is wrong with them into one line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from stages.common.errors import BadInput, refuse
from stages.common.paths import EXPERIMENT, RECIPES  # noqa: F401 - both are asked for as settings.NAME
from stages.schema import Bad, Experiment


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML 1.2 file (as DVC reads it, safely)."""
    try:
        value = YAML(typ="safe", pure=True).load(Path(path).read_text())
    except FileNotFoundError:
        raise BadInput(f"{path}: the file is missing") from None
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}; allowed: a YAML file") from None
    except (YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}:" if where else ""
        reason = str(getattr(error, "problem", None) or error)
        raise BadInput(f"{path}:{line} not valid YAML: {' '.join(reason.split())}") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path}: holds {type(value).__name__}; allowed: a mapping of sections")
    return value


def validate(value: dict[str, Any], file: Path) -> Experiment:
    """Checks a whole experiment. Raises BadInput for the first fault."""
    try:
        return Experiment.model_validate(value)
    except ValidationError as error:
        raise explain(error, value, file) from None


def load(*sections: str, file: Path = EXPERIMENT) -> SimpleNamespace:
    """The named sections of a valid experiment, and nothing else: a stage sees only what DVC tracks for it.

    The file must spell out every value: a default taken from the code would change results behind DVC's back.
    """
    value = read_yaml(file)
    experiment = validate(value, file)
    missing = _first_missing(experiment.model_dump(), value)
    if missing:
        raise BadInput(
            f"{file}: {missing}: missing; allowed: every key spelled out (python -m stages.recipe writes them)"
        )
    return SimpleNamespace(**{name: getattr(experiment, name) for name in sections})


def _first_missing(full: Any, given: Any, at: str = "") -> str | None:
    if isinstance(full, dict):
        for key, value in full.items():
            if key not in given:
                return f"{at}{key}"
            if found := _first_missing(value, given[key], f"{at}{key}."):
                return found
    if isinstance(full, list):
        for index, value in enumerate(full):
            if found := _first_missing(value, given[index], f"{at}{index}."):
                return found
    return None


def explain(error: ValidationError, value: Any, file: Path) -> BadInput:
    """The line for the first fault that pydantic found in the contents of a file."""
    fault = error.errors()[0]
    key = ".".join(str(step) for step in _path(fault["loc"], value))
    kind, context, given = fault["type"], fault.get("ctx", {}), fault["input"]
    cause = context.get("error")
    if isinstance(cause, Bad):
        return refuse(file, f"{key}.{cause.key}" if key else cause.key, cause.value, cause.allowed)
    if kind in ("missing", "union_tag_not_found"):
        key += ".kind" if kind == "union_tag_not_found" else ""
        return BadInput(f"{file}: {key}: missing; allowed: a value (the key has no default)")
    if kind == "union_tag_invalid":
        return refuse(file, f"{key}.kind", context["tag"], f"one of {context['expected_tags']}")
    if kind == "string_pattern_mismatch":
        return refuse(file, key, given, f"text of the form {context['pattern']}")
    return refuse(file, key, given, fault["msg"].removeprefix("Input should be "))


def _path(location: tuple, value: Any) -> list:
    """The keys that lead to a fault, without what pydantic puts between them: "[key]" and the tag (kind) of a union."""
    path = []
    for step in location:
        mapping = value if isinstance(value, dict) else {}
        if step not in mapping and step in ("[key]", mapping.get("kind")):
            continue
        path.append(step)
        value = value[step] if step in mapping or (isinstance(value, list) and step < len(value)) else None
    return path
