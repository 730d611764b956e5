"""Activation checkpointing: a block keeps its inputs alone, and the backward pass computes the rest again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


class Recomputing(nn.Module):
    """A module whose layers may be recomputed; none is until `recompute` is called."""

    recomputes = False

    def recompute(self) -> None:
        """Keeps only the inputs of the layers for the backward pass."""
        self.recomputes = True

    def through(self, layer: nn.Module, *given: Any) -> Any:
        """Calls one of its layers, which takes and returns tensors."""
        return recomputed(layer, *given) if self.recomputes and torch.is_grad_enabled() else layer(*given)


def recomputed(layer: nn.Module, *given: Any) -> Any:
    """Calls a layer whose activations the backward pass computes again, with its adapters on or off as they are now.

    A teacher beneath an adapter is called with the adapter off; by the time of the backward pass it is on again.
    """
    # torch's compiler takes no contexts of ours, and needs none: it traces both passes with the adapters as they are.
    modules: Iterable[nn.Module] = () if torch.compiler.is_compiling() else layer.modules()
    off = [module for module in modules if getattr(module, "disable_adapters", None) is True]
    if not off:
        return checkpoint(layer.__call__, *given, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), disabled(off)

    return checkpoint(layer.__call__, *given, use_reentrant=False, context_fn=contexts)


@contextmanager
def disabled(adapted: list[Any]) -> Iterator[None]:
    """Turns peft's layers off, without touching what else their own switch does: which weights are trained."""
    before = [module.disable_adapters for module in adapted]
    for module in adapted:
        module._disable_adapters = True
    try:
        yield
    finally:
        for module, value in zip(adapted, before):
            module._disable_adapters = value
