"""Checks `params.yaml` and recipes, and reports their errors in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from multiscale.core.settings import FAMILIES, MADE, Bad, Unknown
from stages.common.errors import BadInput, refuse
from stages.common.paths import EXPERIMENT
from stages.common.reading import read_yaml
from stages.schema import Experiment
from stages.schema.rendering import written

TAGS = ("kind", "role")  # keys that select the model of a section
STEPS = ("[key]", *FAMILIES, *MADE)  # pydantic's own in the place of a fault, besides the values of TAGS
OWN = ("parts", "students", "methods")  # sections that may leave out defaults
OPTIONAL = ("run", "synthetic")  # the same, and may be left out themselves


def validate(value: dict[str, Any], file: Path) -> Experiment:
    """Validates a whole experiment. Raises BadInput for the first error."""
    try:
        return Experiment.model_validate(value)
    except ValidationError as error:
        raise explain(error, value, file) from None


def load() -> Experiment:
    """The experiment. Raises BadInput for the first error.

    All keys must be spelled out except in `OWN` and `OPTIONAL`: DVC would not notice a changed default in the code. The
    stages of those depend on the code that holds their defaults, or `run` decides nothing.
    """
    value = read_yaml(EXPERIMENT)
    experiment = validate(value, EXPERIMENT)
    spelled_out = {name: section for name, section in written(experiment).items() if name not in (*OPTIONAL, *OWN)}
    if missing := _first_missing(spelled_out | dict.fromkeys(OWN, {}), value):
        allowed = "every key spelled out (python -m stages.recipe writes them)"
        raise BadInput(f"{EXPERIMENT}: {missing}: missing; allowed: {allowed}")
    return experiment


def _first_missing(full: dict[str, Any], given: dict[str, Any], at: str = "") -> str | None:
    for key, value in full.items():
        if key not in given:
            return f"{at}{key}"
        if isinstance(value, dict) and (found := _first_missing(value, given[key], f"{at}{key}.")):
            return found
    return None


def explain(error: ValidationError, value: Any, file: Path) -> BadInput:
    """The error for the first fault that pydantic found in a file."""
    fault = error.errors()[0]
    kind, context, given = fault["type"], fault.get("ctx", {}), fault["input"]
    tag = context.get("discriminator", "").strip("'")
    key = ".".join(str(step) for step in [*_path(fault["loc"], value), *([tag] if tag else [])])
    cause = context.get("error")
    if isinstance(cause, Unknown):
        whole = f"{key}.{cause.key}" if key else cause.key
        problem = f"{cause.value!r} is no key of this section{cause.meant}"
        return BadInput(f"{file}: {whole}: {problem}; allowed: {cause.allowed}")
    if isinstance(cause, Bad):
        return refuse(file, f"{key}.{cause.key}" if key else cause.key, cause.value, cause.allowed)
    if kind in ("missing", "union_tag_not_found"):
        return BadInput(f"{file}: {key}: missing; allowed: a value (the key has no default)")
    if kind == "union_tag_invalid":
        return refuse(file, key, context["tag"], f"one of {context['expected_tags']}")
    if kind == "string_pattern_mismatch":
        return refuse(file, key, given, f"text of the form {context['pattern']}")
    return refuse(file, key, given, fault["msg"].removeprefix("Input should be "))


def _path(location: tuple[int | str, ...], value: Any) -> list[int | str]:
    """The keys that lead to a fault, without pydantic's own steps."""
    path = []
    for step in location:
        mapping = value if isinstance(value, dict) else {}
        if step not in mapping and step in (*STEPS, *(mapping.get(tag) for tag in TAGS)):
            continue
        path.append(step)
        inside = step in mapping or (isinstance(value, list) and isinstance(step, int) and step < len(value))
        value = value[step] if inside else None
    return path
