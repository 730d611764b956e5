"""Renders an experiment as params.yaml, with the docstring of each field as a comment."""

from __future__ import annotations

import io
import textwrap
from typing import Any

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from stages.schema import Experiment

WIDTH = 120
SPARSE = ("decompose", "parts", "students", "synthetic", "methods")  # their stages depend on the code of the defaults
LINES = ("decompose", "methods")  # sections whose entries are written on one line where they fit
HEADER = """\
# The experiment. Edit it, then run `dvc repro`: it re-runs what depends on your edits, and nothing else.
# Written by `python -m stages.recipe {name}`. Each key is explained where it first occurs.
# In decompose, parts, students and methods, keys at their defaults are left out. To print all keys and defaults:
#   python -m stages.recipe --defaults
# To run with another value of a key in this file, or of one that is left out (note the +):
#   dvc exp run -S training.lr=1e-3
#   dvc exp run -S +parts.NAME.training.lr=1e-3
"""
WHOLE = "# The experiment of the recipe {name}, with all keys and defaults.\n"


def written(experiment: Experiment) -> dict[str, Any]:
    """The contents of the file: the sections of the methods without defaults, all others in full.

    A training omits what the section `training` already says, and a null that is the default is omitted.
    """
    tree: dict[str, Any] = {}
    for name in Experiment.model_fields:
        section = getattr(experiment, name)
        if name == "synthetic" and not section:  # dvc.yaml says that it is empty where it is left out
            continue
        if name in SPARSE:
            tree[name] = {key: _sparse(entry) for key, entry in section.items()}
        else:
            tree[name] = _full(section)
    common = experiment.training.model_dump()
    encoders = [text["encoder"] for text in tree["text"].values()]
    for section in (tree["vae"], *encoders, tree["classifier"], *tree["parts"].values(), *tree["students"].values()):
        if own := section.pop("training", None):
            if differing := {key: value for key, value in own.items() if value != common[key]}:
                section["training"] = differing
    return tree


def _full(value: Any) -> Any:
    """A value of a section in plain types, without a null that is the default."""
    if isinstance(value, BaseModel):
        keys = (key for key in type(value).model_fields if not _says_nothing(value, key))
        return {key: _full(getattr(value, key)) for key in keys}
    return {key: _full(each) for key, each in value.items()} if isinstance(value, dict) else value


def _sparse(section: BaseModel) -> dict[str, Any]:
    """A section without defaults, but with `source`, which dvc.yaml refers to, and the whole `training`."""
    kept = section.model_dump(exclude_defaults=True)
    full = section.model_dump(include={"source", "training"})
    return {key: full.get(key, kept.get(key)) for key in type(section).model_fields if key in full or key in kept}


def _says_nothing(section: BaseModel, key: str) -> bool:
    return getattr(section, key) is None and type(section).model_fields[key].default is None


def render(experiment: Experiment, whole: bool = False) -> str:
    """The text of params.yaml; `whole` writes every key, each on its own line."""
    tree = experiment.model_dump() if whole else written(experiment)
    lines = Writer(whole).section(experiment, tree)
    return "\n".join([(WHOLE if whole else HEADER).format(name=experiment.recipe), *lines, ""])


class Writer:
    """Formats sections as lines, as DVC writes them back when it overrides a key; `whole` explains every key.

    A comment is written once, where its key or section first occurs.
    """

    def __init__(self, whole: bool):
        self.whole = whole
        self.explained: set[tuple[object, str]] = set()

    def section(self, section: BaseModel, tree: dict[str, Any], indent: int = 0) -> list[str]:
        """The lines of the keys of a section that are in `tree`, with the values there."""
        lines = []
        for key in _last_no_list(tree):
            inside, value = getattr(section, key), tree[key]
            comment = self._about(inside)
            if not indent or not _model(inside):  # below the top level a model explains more than its key
                comment = self._once(key, _docstring(type(section), key)) or comment
            lines += [""] if isinstance(value, dict) and not indent else []
            lines += self.entry(key, inside, value, comment, indent, indent > 0)
        return lines

    def entry(self, key: str, inside: Any, value: Any, comment: str, indent: int, one_line: bool) -> list[str]:
        """The lines of a key whose field holds `inside`, of which `value` is written."""
        lines = dumped(key, value, indent)
        if isinstance(value, dict) and value and not (one_line and not self.whole and _fits_one_line(lines, value)):
            head = _commented(dumped(key, None, indent), comment, indent)
            if isinstance(inside, BaseModel):
                return head + self.section(inside, value, indent + 2)
            for name, section in inside.items():
                head += self.entry(name, section, value[name], self._about(section), indent + 2, key in LINES)
            return head
        if isinstance(value, list) and value and self.whole and _model(inside):
            head = _commented(lines[:1], comment, indent)
            for section, item in zip(inside, value):
                first, *others = self.section(section, item, indent + 2)
                head += [" " * indent + "- " + first.lstrip(), *others]
            return head
        return _commented(lines, comment, indent)

    def _about(self, inside: Any) -> str:
        """The first line of a model's docstring, unless already written."""
        model = _model(inside)
        text = ((model and model.__doc__) or "").partition("\n")[0].removesuffix(".")
        return self._once(model, text[:1].lower() + text[1:] if text[1:2].islower() or text[1:2] == " " else text)

    def _once(self, what: object, text: str) -> str:
        seen = (what, text) in self.explained
        self.explained.add((what, text))
        return "" if seen else text


def _model(inside: Any) -> type[BaseModel] | None:
    """The model of a section or of a list of sections."""
    one = inside[0] if isinstance(inside, list) and inside else inside
    return type(one) if isinstance(one, BaseModel) else None


def _docstring(model: type[BaseModel], key: str) -> str:
    """The docstring of a field, that of the most basic class first."""
    bases = [base for base in reversed(model.__mro__) if issubclass(base, BaseModel) and key in base.model_fields]
    return next((text for base in bases if (text := base.model_fields[key].description)), "")


def _commented(lines: list[str], comment: str, indent: int) -> list[str]:
    """A key's lines with its comment: behind the first, or above where that is too long or a mapping goes on."""
    behind = f"{lines[0]} # {comment}"
    if not comment:
        return lines
    if len(behind) <= WIDTH and (len(lines) == 1 or lines[0].endswith(":")):
        return [behind, *lines[1:]]
    mark = " " * indent + "# "
    return [*textwrap.wrap(comment, WIDTH, initial_indent=mark, subsequent_indent=mark), *lines]


def _last_no_list(tree: dict[str, Any]) -> list[str]:
    """The keys in order, but the last is none of a list: DVC drops a blank line or a comment after a list."""
    keys = list(tree)
    others = [key for key in keys if not isinstance(tree[key], list)]
    return keys if not others or keys[-1] == others[-1] else [key for key in keys if key != others[-1]] + others[-1:]


def _fits_one_line(lines: list[str], value: dict[str, Any]) -> bool:
    """Whether a mapping is short, and DVC writes braces around all of it and the word null."""
    return len(" ".join(line.strip() for line in lines)) <= WIDTH and _has_braces(value)


def _has_braces(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_has_braces, value.values()))
    if isinstance(value, list):
        return all(_has_braces(entry) and not (isinstance(entry, dict) and len(entry) == 1) for entry in value)
    return value is not None


def dumped(key: str, value: Any, indent: int) -> list[str]:
    """The lines of a key as DVC dumps it: a mapping in braces, folded at 80 columns, a list one entry a line."""
    yaml, text = YAML(), io.StringIO()
    yaml.default_flow_style = False
    tree: dict[str, Any] = {key: _in_braces(value)}
    for _ in range(indent // 2):  # the column decides where a line is folded
        tree = {"": tree}
    yaml.dump(tree, text)
    return text.getvalue().splitlines()[indent // 2 :]


def _in_braces(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    mapping = CommentedMap({key: _in_braces(entry) for key, entry in value.items()})
    mapping.fa.set_flow_style()
    return mapping


def plain(value: Any) -> str:
    """A value as one line of YAML 1.2."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{plain(key)}: {plain(entry)}" for key, entry in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(plain, value)) + "]"
    yaml, text = YAML(typ="safe", pure=True), io.StringIO()
    yaml.default_flow_style, yaml.width = True, 2**31
    yaml.dump([value], text)
    return text.getvalue().strip()[1:-1]
