"""The methods, a folder each; `docs/adding-a-method.md` shows how one is added.

Each folder offers four modules, which are imported by name, so that a change of one method leaves the others' results
valid:
    settings        the models of its sections of the experiment, and what they must agree on: DECOMPOSITION, PART,
                    METHOD, READS (whose decompositions its parts may read), check_decomposition, check_part,
                    check_method; a method that distils has STUDENT and check_student as well
    decomposition   decompose(section, source) -> what its parts train on; optional
    parts           build_part(name, part, folder, classes) -> (Part, config): config is saved beside the weights
    sampler         load_sampler(folders, settings, codec, precision) -> Sampler: from the folders of the trained parts
"""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType


def names() -> list[str]:
    """Of all methods: the folders beside this file."""
    return sorted(path.parent.name for path in Path(__file__).parent.glob("[!_]*/settings.py"))


def settings(name: str) -> ModuleType:
    """What may stand in the experiment for a method."""
    return importlib.import_module(f"multiscale.methods.{name}.settings")


def decomposition(name: str) -> ModuleType:
    """What makes the arrays that a method trains on."""
    return importlib.import_module(f"multiscale.methods.{name}.decomposition")


def parts(name: str) -> ModuleType:
    """What trains a method."""
    return importlib.import_module(f"multiscale.methods.{name}.parts")


def sampler(name: str) -> ModuleType:
    """What samples a method."""
    return importlib.import_module(f"multiscale.methods.{name}.sampler")
