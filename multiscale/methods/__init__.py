"""The methods, one module each. A method builds its parts and its sampler; `docs/adding-a-method.md` shows how.

Each module offers:
    build_part(name, part, folder, classes) -> (Part, config): the part as trained; config is saved beside its weights
    load_sampler(folders, settings, codec, precision) -> Sampler: from the folders of the trained parts
"""

from __future__ import annotations

import importlib
from types import ModuleType


def method(name: str) -> ModuleType:
    """The module of a method. Imported by name, so that a change of one method leaves the others' results valid."""
    return importlib.import_module(f"multiscale.methods.{name}")
