"""Imports of libraries that take more than they need: torchvision's CUDA build, and what loads for nothing.

PyPI's torchvision is compiled for CUDA. Beside a CPU-only torch its operators do not load, and importing it fails with
"operator torchvision::nms does not exist". torch-fidelity imports it, and so does diffusers if transformers is
installed. Declaring the schemas of the two operators that torchvision's Python code names is enough: nothing here
calls them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, cast

import torch

_library: torch.library.Library | None = None  # kept alive: the schemas vanish with it


def make_torchvision_importable() -> None:
    """Declares torchvision's operators if they cannot load. Call it before anything imports torchvision."""
    global _library
    if _library is not None or torch.cuda.is_available():
        return
    try:
        torch.ops.torchvision.nms  # noqa: B018 - an attribute look-up that raises where the operator is missing
        return
    except (AttributeError, RuntimeError):
        pass
    try:
        with _without_compiler():
            import torchvision  # noqa: F401
    except ImportError:
        return
    except RuntimeError:
        _library = torch.library.Library("torchvision", "DEF")
        _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]  # half imported
        with _without_compiler():
            import torchvision  # noqa: F401


@contextmanager
def _without_compiler() -> Iterator[None]:
    """For imports that load torch's compiler, in seconds, to ask one question of it or to mark what it takes as it is.

    A compiler that is loaded already stays. One that is loaded later looks into blocks of diffusers, which is as good.
    """
    compiler = "torch._dynamo"
    if compiler in sys.modules:
        yield
        return
    stand_ins = {name: ModuleType(name) for name in (compiler, f"{compiler}.utils")}
    vars(stand_ins[f"{compiler}.utils"])["is_compile_supported"] = lambda device: False
    vars(stand_ins[compiler])["disable"] = lambda function=None, *_, **__: function or (lambda own: own)
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            del sys.modules[name]


@contextmanager
def without_pipelines() -> Iterator[None]:
    """For an import of diffusers' models and schedulers: hides what it loads, where it finds it, for its pipelines.

    That takes seconds. What diffusers has found before, it expects to stay, and what transformers has found, it takes;
    what it has missed, it asks for no more.
    """
    loaded = {"diffusers", "transformers"} & sys.modules.keys()
    if not loaded:
        with absent("peft", "scipy", "torchvision", "transformers"), _without_compiler():
            yield
        return
    if "diffusers" not in loaded or sys.modules["diffusers"].utils.is_torchvision_available():
        make_torchvision_importable()
    yield


@contextmanager
def absent(*packages: str) -> Iterator[None]:
    """Lets an import find these packages missing, where it loads them if they are there, in seconds, and needs none.

    Packages that are loaded already stay.
    """
    modules = cast(dict[str, Any], sys.modules)
    hidden = [name for name in packages if name not in modules]
    modules |= dict.fromkeys(hidden)  # None is what Python takes for a module that cannot be imported
    try:
        yield
    finally:
        for name in hidden:
            del modules[name]
