"""Tensors without numbers, and what calls with them would cost in operations and memory.

torch's fake tensors do the same and more; in a network of billions of parameters they take six times as long.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count, shape_wrapper

from multiscale.core.device import CPU

META = torch.device("meta")


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


Like = tuple[torch.Size, tuple[int, ...], torch.dtype]  # a tensor's shape, strides and type


@dataclass(frozen=True)
class Outcome:
    """What an operation gives for tensors of some shapes, strides and types, and its FLOP."""

    likes: list[Like] | None
    """None: what must be worked out, since it is a view of what was given, or no tensor"""
    flops: int


KNOWN: dict[Any, Outcome] = {}  # torch works most operations on the meta device out in Python, slowly


class Hollow(Tensor):
    """A tensor of the CPU by its shape, strides and type alone; what is computed from it is as hollow.

    Autograd and autocast treat it as any other. Tensors with numbers may take part.
    """

    bare: Tensor  # its counterpart on the meta device, whose storage counts as its own
    like: Like

    @staticmethod
    def __new__(cls, bare: Tensor, like: Like | None = None) -> Hollow:
        like = like or _like(bare)
        made: Hollow = Tensor._make_wrapper_subclass(
            cls, like[0], like[1], bare.storage_offset(), dtype=like[2], device=CPU
        )
        made.bare, made.like = bare, like
        return made

    @classmethod
    def empty(cls, shape: Sequence[int], dtype: torch.dtype) -> Hollow:
        """One of this shape and type."""
        return cls(torch.empty(tuple(shape), dtype=dtype, device=META))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's stub lacks the function
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return called(func, args, kwargs or {})[0]


def _like(x: Tensor) -> Like:
    return x.shape, x.stride(), x.dtype


def called(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, int, list[Tensor]]:
    """What an operation of torch gives, its FLOP, and tensors, each with one of the storages that it made."""
    key = None
    if not (func.is_view or func._schema.is_mutable):
        key = (func, _told(args), _told(kwargs.items()))
        if (known := KNOWN.get(key)) and known.likes is not None:
            bare = [torch.empty_strided(like[0], like[1], dtype=like[2], device=META) for like in known.likes]
            made = [Hollow(x, like) for x, like in zip(bare, known.likes)]
            return made if len(func._schema.returns) > 1 else made[0], known.flops, bare
    out, fresh = _worked_out(func, args, kwargs)
    if key is None:
        return out, 0, []
    if key not in KNOWN:
        formula = FORMULAS.get(func.overloadpacket)
        several = out if isinstance(out, list) else [out]
        likes = [x.like for x in several] if len(fresh) == len(several) else None
        KNOWN[key] = Outcome(likes, formula(*args, **kwargs, out_val=out) if formula else 0)
    return out, KNOWN[key].flops, fresh


def _told(given: Iterable[Any]) -> tuple[Any, ...]:
    """Arguments by their values, tensors by what decides the shapes of results."""
    return tuple(x.like if type(x) is Hollow else _value(x) for x in given)


def _value(x: Any) -> Any:
    if isinstance(x, list | tuple):
        return _told(x)
    return _like(x) if isinstance(x, Tensor) else (type(x), x)


def _worked_out(func: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, list[Tensor]]:
    """What an operation gives, by its counterpart on the meta device, and a tensor of each storage that it made."""
    given = {id(x.bare): x for x in tree_leaves((args, kwargs)) if isinstance(x, Hollow)}
    named = {key: META if key == "device" and x else _bare(x) for key, x in kwargs.items()}
    out = func(*(_bare(x) for x in args), **named)
    held = {x.bare.untyped_storage()._cdata for x in given.values()}
    made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
    fresh = {x.untyped_storage()._cdata: x for x in made if x.untyped_storage()._cdata not in held}
    return _hollow(out, given), list(fresh.values())


# Functions of their own: closures that call themselves would keep the tensors until the garbage is collected.
def _bare(x: Any) -> Any:
    if isinstance(x, list | tuple):
        return [_bare(each) for each in x]
    if isinstance(x, Hollow):
        return x.bare
    return x.to(META) if isinstance(x, Tensor) else x


def _hollow(x: Any, given: dict[int, Hollow]) -> Any:
    if isinstance(x, list | tuple):
        return [_hollow(each, given) for each in x]
    if not isinstance(x, Tensor):
        return x
    return given[id(x)] if id(x) in given else Hollow(x)


class Count(TorchDispatchMode):
    """Counts FLOP, by torch's formulas, and the bytes of all storages that live of those that are made meanwhile.

    torch's own counter keeps activations alive that are computed again.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's is not typed
        self.now = self.most = self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if Hollow in types:
            out, flops, fresh = called(func, args, kwargs or {})
            self.flops += flops
        else:  # a constant with numbers
            out = func(*args, **(kwargs or {}))
            fresh = [] if func.is_view or func._schema.is_mutable or not isinstance(out, Tensor) else [out]
        for x in fresh:
            storage = x.untyped_storage()
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, storage.nbytes())
        return out

    def _gone(self, size: int) -> None:
        self.now -= size


def costs(call: Callable[[], None]) -> tuple[int, int]:
    """The most bytes of tensors made in a call that live at one time, and the FLOP of it."""
    with Count() as count:
        call()
    return count.most, count.flops
