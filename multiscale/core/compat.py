"""The one repair of the environment: torchvision's CUDA build beside a CPU torch.

The package registry serves torchvision compiled for CUDA. Beside a CPU-only torch its operators do not load, and
importing it (torch-fidelity does; so does diffusers where transformers is installed) fails with "operator
torchvision::nms does not exist". Declaring the schemas of the two operators that its Python code refers to cures the
import; nothing here calls them.
"""

from __future__ import annotations

import torch

_library: torch.library.Library | None = None  # kept alive: the schemas vanish with it


def make_torchvision_importable() -> None:
    """Declares torchvision's operators, only where they really cannot load. Call it before the import."""
    global _library
    if _library is not None or torch.cuda.is_available():
        return
    try:
        torch.ops.torchvision.nms  # noqa: B018 - an attribute look-up that raises where the operator is missing
        return
    except (AttributeError, RuntimeError):
        pass
    try:
        import torchvision  # noqa: F401
    except ImportError:
        return
    except RuntimeError:
        _library = torch.library.Library("torchvision", "DEF")
        _library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _forget_half_imported("torchvision")


def _forget_half_imported(package: str) -> None:
    import sys

    for name in [name for name in sys.modules if name == package or name.startswith(f"{package}.")]:
        del sys.modules[name]
