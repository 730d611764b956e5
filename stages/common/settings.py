"""Reads `params/experiment.yaml` and recipes, and turns whatever is wrong with them into one line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError

from stages.schema import Bad, Experiment

EXPERIMENT = Path("params/experiment.yaml")
RECIPES = Path("params/recipes")


class BadInput(Exception):
    """Something the user can mend. Its text is the one line they read; the command ends with exit code 2."""


def refuse(file: object, key: str, value: object, allowed: str) -> BadInput:
    """The one form of that line: file, key, value and what is allowed."""
    shown = repr(value)
    return BadInput(
        f"{file}: {key}: {shown if len(shown) <= 120 else shown[:117] + '...'} is not allowed; allowed: {allowed}"
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML 1.2 file (as DVC reads it, safely)."""
    try:
        value = YAML(typ="safe", pure=True).load(Path(path).read_text())
    except FileNotFoundError:
        raise BadInput(f"{path}: the file is missing") from None
    except (MarkedYAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}:" if where else ""
        raise BadInput(f"{path}:{line} not valid YAML: {getattr(error, 'problem', error)}") from None
    if not isinstance(value, dict):
        raise BadInput(f"{path}: holds {type(value).__name__}; allowed: a mapping of sections")
    return value


def validate(value: dict[str, Any], file: Path) -> Experiment:
    """Checks a whole experiment. Raises BadInput for the first fault."""
    try:
        return Experiment.model_validate(value)
    except ValidationError as error:
        raise _explain(error, value, file) from None


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


def _explain(error: ValidationError, value: Any, file: Path) -> BadInput:
    fault = error.errors()[0]
    path = [part for part in fault["loc"] if _exists(value, fault["loc"], part)]
    key = ".".join(str(part) for part in path)
    cause = fault.get("ctx", {}).get("error")
    if isinstance(cause, Bad):
        return refuse(file, f"{key}.{cause.key}" if key else cause.key, cause.value, cause.allowed)
    if fault["type"] == "extra_forbidden":
        return refuse(file, key, path[-1], f"the keys {', '.join(_keys_at(path[:-1]))}")
    if fault["type"] == "missing":
        return BadInput(
            f"{file}: {'.'.join(str(part) for part in fault['loc'] if part not in _TAGS)}: the key is missing"
        )
    if fault["type"] == "string_pattern_mismatch":
        return refuse(file, key, fault["input"], f"text of the form {fault['ctx']['pattern']}")
    if "[key]" in fault["loc"]:
        return refuse(file, key, fault["input"], "names of lower-case letters, digits and dashes")
    return refuse(file, key, fault["input"], fault["msg"].removeprefix("Input should be "))


_TAGS = ("dit", "msf")


def _exists(value: Any, loc: tuple, part: Any) -> bool:
    """Drops from a location the tags of unions, which pydantic inserts and no user wrote."""
    for step in loc[: loc.index(part) + 1]:
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        elif step is part:
            return part not in (*_TAGS, "[key]")
    return True


def _keys_at(path: list) -> list[str]:
    """The keys allowed in the section at `path`."""
    model: Any = Experiment
    for step in path:
        if isinstance(model, type) and issubclass(model, BaseModel):
            model = model.model_fields[step].annotation
        else:
            model = next(iter(reversed(get_args(model))), model)
        model = _innermost(model)
    if isinstance(model, type) and issubclass(model, BaseModel):
        return list(model.model_fields)
    return sorted({key for option in get_args(model) for key in getattr(option, "model_fields", {})})


def _innermost(annotation: Any) -> Any:
    """A model out of Annotated[...] or `Model | None`; anything else as it is."""
    arguments = [a for a in get_args(annotation) if isinstance(a, type) and issubclass(a, BaseModel)]
    return arguments[0] if len(arguments) == 1 else annotation
