"""What a network would cost at a shape, worked out without its memory or its time: no number is computed.

The network is called with hollow tensors: these have shapes and types alone, so that a plan of billions of parameters
takes seconds on any machine. Attention is taken to run in a fused kernel, which keeps no matrix of all pairs of tokens.
Constants that functions cache meanwhile may be hollow: compute nothing with such a network in the same process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_map_only, tree_unflatten

from multiscale.hollow import Hollow, costs

PLAIN = (bool, int, float, str, tuple, type(None))  # settings of a module


def size(net: nn.Module) -> tuple[int, int, int]:
    """The parameters of a network, those with a gradient, and the bytes of parameters and buffers."""
    parameters, held = list(net.parameters()), [*net.parameters(), *net.buffers()]
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return sum(p.numel() for p in parameters), trained, sum(x.numel() * x.element_size() for x in held)


@dataclass(frozen=True)
class Call:
    """What a call of a network would cost, and the last dimension of its first input."""

    edge: int
    activations: int
    """bytes: the most of all tensors but the weights that live at one time, inputs and gradients included"""
    flops: int
    """a multiply-add counts two"""


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

    def __init__(self, net: nn.Module, known: dict[str, Any] | None = None) -> None:
        """known: of other networks, by their structure; calls of one that is built alike are not worked out again."""
        super().__init__(net)
        _empty(net)
        self.known = self.known if known is None else known.setdefault(structure(net), self.known)

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

        with torch.set_grad_enabled(followed):
            activations, flops = costs(call)
        return Call(leaves[0].shape[-1], activations, flops), given_back[0]


def structure(net: nn.Module) -> str:
    """A network by what decides the costs of its calls: modules with their settings, weights by shape and type."""
    modules = [
        (
            name,
            type(module),
            [(key, value if isinstance(value, PLAIN) else type(value)) for key, value in vars(module).items()],
        )
        for name, module in net.named_modules()
    ]
    weights = [(name, x.shape, x.dtype) for name, x in (*net.named_parameters(), *net.named_buffers())]
    return repr((modules, weights))


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
    return Hollow.empty(x.shape, x.dtype).requires_grad_(x.requires_grad)


def _empty(net: nn.Module) -> None:
    """Replaces the parameters and buffers of a network by hollow ones."""
    for module in net.modules():
        for name, x in [*module.named_parameters(recurse=False)]:
            parameter: Any = nn.Parameter(Hollow.empty(x.shape, x.dtype), x.requires_grad)
            setattr(module, name, parameter)
        for name, buffer in [*module.named_buffers(recurse=False)]:
            setattr(module, name, Hollow.empty(buffer.shape, buffer.dtype))
