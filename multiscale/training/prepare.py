"""What the settings of a training ask of a part and its networks, before they are placed and wrapped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from multiscale.core.settings import Bad
from multiscale.training.part import Part, Training

GRAPHS = 64  # of one network, which is called at several resolutions, with gradients and without


def check(part: Part, training: Training, sharded: bool) -> None:
    """Raises Bad for micro-batches where the whole batch counts, for shards where a gradient is differentiated."""
    if sharded and part.twice:  # torch frees the weights of a block after its backward pass
        raise Bad("run.parallel", "fsdp", f"ddp for {part.name}, which differentiates a gradient")
    couples = part.couples
    if any(isinstance(module, _BatchNorm) for net in part.networks.values() for module in net.modules()):
        couples = "batch normalisation takes the images of a batch together"
    if couples and training.microbatch:
        raise Bad("training.microbatch", training.microbatch, f"null for {part.name}: {couples}")


def recompute(part: Part) -> None:
    """Has the blocks of a part's networks recomputed. Raises Bad where none of them can be."""
    nets = [*part.networks.values(), *part.frozen.values()]
    able: list[Any] = [module for net in nets for module in net.modules() if hasattr(module, "recompute")]
    if not able:
        raise Bad("training.recompute", True, f"false for {part.name}, whose networks have no blocks to recompute")
    for module in able:
        module.recompute()


def compile_in_place(nets: Sequence[nn.Module]) -> None:
    """Compiles networks, with static shapes: once for each resolution and way of calling them.

    What the functions in `constants` of a module give is computed once. Else each call would compute it, and send what
    is made on the CPU to the device, which waits for it.
    """
    import torch._dynamo  # here, because it takes seconds

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, GRAPHS)
    for net in nets:
        for function in {each for module in net.modules() for each in getattr(module, "constants", ())}:
            torch.compiler.assume_constant_result(function)
        net.compile(dynamic=False)
