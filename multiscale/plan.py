"""What a network would cost at a shape, worked out without its memory or its time: no number is computed.

The network is called with fake tensors: these have shapes and types alone, so that a plan of billions of parameters
takes seconds on any machine. Attention is taken to run in a fused kernel, which keeps no matrix of all pairs of tokens.
Constants that functions cache meanwhile are fake: compute nothing with such a network in the same process.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map_only, tree_unflatten
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count, shape_wrapper
from torch.utils.weak import WeakIdKeyDictionary


def _forward(q: Any, k: Any, v: Any, *rest: Any, **more: Any) -> int:
    return int(sdpa_flop_count(q, k, v))


def _backward(gradient: Any, q: Any, k: Any, v: Any, *rest: Any, **more: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, q, k, v))


FORMULAS = {
    **flop_registry,
    # The fused kernels of a CPU, which torch does not know.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: shape_wrapper(_forward),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: shape_wrapper(_backward),
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
    """The plan of a network called with inputs of these shapes and further options; with `train`, backward as well."""
    with torch.device("meta"):
        net = build().to(dtype)
    with FakeTensorMode(allow_non_fake_inputs=True):  # constants that functions cache
        own = _fake(net)

        def call() -> None:
            given = [torch.empty(shape, dtype=dtype) for shape in shapes]
            with torch.set_grad_enabled(train):
                out = net(*given, **options)
            if train:
                out.sum().backward()

        activations, flops = _costs(call, own)
    return Plan(*size(net, own), activations, flops)


def size(net: nn.Module, own: Sequence[Tensor] | None = None) -> tuple[int, int, int]:
    """The parameters of a network, those with a gradient, and the bytes of parameters and buffers."""
    parameters, held = list(net.parameters()), own or [*net.parameters(), *net.buffers()]
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return sum(p.numel() for p in parameters), trained, sum(x.numel() * x.element_size() for x in held)


def _costs(call: Callable[[], None], own: Sequence[Tensor]) -> tuple[int, int]:
    """Bytes of activations and FLOP of a call."""
    with _Count(own) as count:
        call()
    return count.most, count.flops


@dataclass(frozen=True)
class Call:
    """What a call of a network would cost, and the last dimension of its first input."""

    edge: int
    activations: int
    """bytes: the most that live at one time"""
    flops: int


class Double(nn.Module):
    """Stands in for a network: gives zeros of the same shapes when it is called, and notes the calls.

    What calls it may be real: a sampler, or the loss of a part. Subclasses define `learn`.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.held = (net,)  # no child: nothing of it is moved, cast or trained
        self.plain = net.forward
        self.calls: list[Any] = []
        self.known: dict[Any, tuple[Any, Any]] = {}

    @property
    def net(self) -> nn.Module:
        """The network."""
        return self.held[0]

    def instead(self) -> Self:
        """Steps in wherever the network itself is called."""
        self.net.__dict__["forward"] = self  # as no child, too
        return self

    def leave(self) -> None:
        """Undoes `instead`."""
        self.net.__dict__.pop("forward", None)

    def forward(self, *given: Any, **options: Any) -> Any:
        leaves, tree = tree_flatten((given, options))
        trained = sum(p.numel() for p in self.net.parameters() if p.requires_grad)
        sources = [leaf for leaf in leaves if _followed(leaf)]
        followed = torch.is_grad_enabled() and bool(trained or sources)
        told = [(leaf.shape, leaf.dtype, _followed(leaf)) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        off = any(getattr(module, "disable_adapters", None) is True for module in self.net.modules())
        key = (str(tree), repr(told), followed, trained, off)
        if key not in self.known:
            self.known[key] = self.learn(leaves, tree, followed)
        note, like = self.known[key]
        self.calls.append(note)

        def zeros(of: _Shape) -> Tensor:
            made = torch.zeros(of.shape, dtype=of.dtype, device=of.device, requires_grad=followed)
            return made + sum(0 * source.sum() for source in sources) if followed else made

        return tree_map_only(_Shape, zeros, like)

    def learn(self, leaves: list[Any], tree: TreeSpec, followed: bool) -> tuple[Any, Any]:
        """What is noted of a call with such inputs, and what the network gives, as `shapes`."""
        raise NotImplementedError


class Understudy(Double):
    """Notes what the calls of a network would cost.

    A call that autograd follows counts its backward pass; a derivative of a derivative does not count.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        with self.mode:
            self.own = _fake(net)

    def learn(self, leaves: list[Any], tree: TreeSpec, followed: bool) -> tuple[Call, Any]:
        given_back: list[Any] = []

        def call() -> None:
            copies = [_copy(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
            given, options = tree_unflatten(copies, tree)
            out = self.plain(*given, **options)
            given_back.append(shapes(out))
            ends = [x.float().sum() for x in tree_flatten(out)[0] if _followed(x)]
            if ends:
                torch.stack(ends).sum().backward()

        with self.mode, torch.set_grad_enabled(followed):
            activations, flops = _costs(call, self.own)
        return Call(leaves[0].shape[-1], activations, flops), given_back[0]


@dataclass(frozen=True)
class _Shape:
    """Of a tensor."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


def shapes(out: Any) -> Any:
    """What a network gave, each tensor by its shape, type and device."""
    return tree_map_only(Tensor, lambda x: _Shape(x.shape, x.dtype, x.device), out)


def _followed(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.requires_grad


def _copy(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype).requires_grad_(x.requires_grad)


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


class _Count(TorchDispatchMode):
    """Counts FLOP, by torch's formulas, and the bytes of all storages that live, apart from those of some tensors.

    torch's own counter keeps activations alive that are computed again.
    """

    def __init__(self, apart: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's is not typed
        self.known = WeakIdKeyDictionary({x.untyped_storage(): True for x in apart})
        self.now = self.most = self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if formula := FORMULAS.get(func.overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return tree_map_only(Tensor, self._seen, out)

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
