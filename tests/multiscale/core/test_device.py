"""What a GPU may multiply in reduced precision, and what not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from multiscale.core.device import allow_tf32
from multiscale.methods.ssd.resizing import bilinear
from multiscale.methods.wmgm.whitening import fully_whitened

matmul = torch.backends.cuda.matmul


class Products(TorchDispatchMode):
    """Notes whether TF32 was allowed at each product of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.allowed: list[bool] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm):
            self.allowed.append(matmul.allow_tf32)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["resizing", "whitening"])
def test_exact_maps_of_images_are_in_fp32_where_tf32_is_allowed(name):
    images = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    call = bilinear(8, 4).apply if name == "resizing" else fully_whitened((1, 8, 8), [images])
    with allow_tf32(), Products() as products:
        images[0, 0] @ images[0, 0]
        call(images)
    first, *others = products.allowed
    assert first and others and not any(others) and not matmul.allow_tf32
