"""What a network would cost at a shape, worked out without its memory or its time: no number is computed.

The network is built on the meta device and called with fake tensors: these have shapes and types alone, so that a plan
of billions of parameters takes seconds on any machine. Attention is taken to run in a fused kernel, which keeps no
matrix of all pairs of tokens.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from torch.utils.weak import WeakIdKeyDictionary


def _forward(q: Any, k: Any, v: Any, *rest: Any, **more: Any) -> int:
    return int(sdpa_flop_count(q, k, v))


def _backward(gradient: Any, q: Any, k: Any, v: Any, *rest: Any, **more: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, q, k, v))


# The fused kernels of a CPU, which torch's counter does not know.
FUSED = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _forward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _backward,
}


@dataclass(frozen=True)
class Plan:
    """The cost of one call of a network, or of one training step without its optimiser."""

    parameters: int
    trained: int
    """parameters with a gradient"""
    weights: int
    """bytes of parameters and buffers"""
    activations: int
    """bytes: the most of all other tensors that live at one time, inputs and gradients included"""
    flops: int
    """a multiply-add counts two"""


def plan(
    build: Callable[[], nn.Module],
    shapes: Sequence[tuple[int, ...]],
    dtype: torch.dtype = torch.bfloat16,
    train: bool = False,
    **options: Any,
) -> Plan:
    """The plan of a network called with inputs of these shapes and further options; with `train`, backward as well.

    Constants that functions cache meanwhile are fake: compute nothing with such a network in the same process.
    """
    with torch.device("meta"):
        net = build().to(dtype)
    parameters = list(net.parameters())
    with FakeTensorMode(allow_non_fake_inputs=True):  # constants that functions cache
        own = _fake(net)

        def call() -> None:
            given = [torch.empty(shape, dtype=dtype) for shape in shapes]
            with torch.set_grad_enabled(train):
                out = net(*given, **options)
            if train:
                out.sum().backward()

        # One after the other: the counter keeps activations alive that are computed again.
        with _Live(own) as live:
            call()
        with FlopCounterMode(display=False, custom_mapping=FUSED) as counter:
            call()
    return Plan(
        parameters=sum(p.numel() for p in parameters),
        trained=sum(p.numel() for p in parameters if p.requires_grad),
        weights=sum(x.numel() * x.element_size() for x in own),
        activations=live.most,
        flops=counter.get_total_flops(),
    )


def _fake(net: nn.Module) -> list[Tensor]:
    """Replaces the parameters and buffers of a network on the meta device by fake ones on the CPU, and gives those."""
    own: list[Tensor] = []
    for module in net.modules():
        for name, x in [*module.named_parameters(recurse=False)]:
            fake: Tensor = nn.Parameter(torch.empty(x.shape, dtype=x.dtype), x.requires_grad)
            own.append(fake)
            setattr(module, name, own[-1])
        for name, buffer in [*module.named_buffers(recurse=False)]:
            own.append(torch.empty(buffer.shape, dtype=buffer.dtype))
            setattr(module, name, own[-1])
    return own


class _Live(TorchDispatchMode):
    """Counts the bytes of all storages that live, apart from those of some tensors, and the most there were."""

    def __init__(self, apart: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's is not typed
        self.known = WeakIdKeyDictionary({x.untyped_storage(): True for x in apart})
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return tree_map_only(Tensor, self._seen, func(*args, **(kwargs or {})))

    def _seen(self, x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage not in self.known:
            self.known[storage] = True
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, storage.nbytes())
        return x

    def _gone(self, size: int) -> None:
        self.now -= size
