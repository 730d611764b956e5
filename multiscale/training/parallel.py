"""The workers of one training run: how they share networks and exchange values.

What shards need is imported where there are some: it loads sympy and much of torch's compiler, in over a second.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, TypeGuard

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from multiscale.core.device import cast_weights, layout_of, placed

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor


class Workers:
    """This process in the process group, or alone if there is none.

    parallel: 'ddp' replicates each network on every worker; 'fsdp' shards weights, gradients and optimiser state, for
    networks that do not fit on one device.
    """

    def __init__(self, parallel: str, device: torch.device):
        self.count = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.device = device
        self.mesh = _mesh(device, self.count) if parallel == "fsdp" and self.count > 1 else None
        self.control = dist.new_group(backend="gloo") if self.count > 1 else None  # for scalars on the CPU
        self.writing = dist.new_group(backend="gloo") if self.mesh else None  # for checkpoints, in their own thread

    def layout(self, net: nn.Module) -> torch.memory_format:
        """The memory layout of a network in training. Shards are contiguous: torch shards no other layout."""
        return torch.contiguous_format if self.mesh else layout_of(net)

    def place(self, net: nn.Module, layout: torch.memory_format, precision: str = "fp32") -> nn.Module:
        """The network on this worker's device, or this worker's shards of it, block by block as it may not fit.

        With bf16 workers exchange weights in bf16 and gradients in fp32. What a block is called with stays as it is,
        since times are not exact in bf16, and is cast by autocast, as without shards. A frozen network, of which every
        call or exchange would cast the same weights, is cast once.
        """
        frozen = not any(p.requires_grad for p in net.parameters())
        if not self.mesh:
            return placed(cast_weights(net, precision) if frozen else net, self.device, layout)
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        if frozen and precision == "bf16":  # whole, as shards are of one dtype
            for parameter in net.parameters():
                parameter.data = parameter.data.bfloat16()
        half = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        policy = half if precision == "bf16" else MixedPrecisionPolicy()
        for module in reversed(list(net.modules())):  # innermost first
            for block in module if isinstance(module, nn.ModuleList) else ():
                if block is not None and not isinstance(block, nn.ModuleList):
                    fully_shard(block, mesh=self.mesh, reshard_after_forward=True, mp_policy=policy)
        fully_shard(net, mesh=self.mesh, reshard_after_forward=True, mp_policy=policy)
        return placed(net, self.device, layout)

    def wrap(self, net: nn.Module, partial: bool) -> nn.Module:
        """A placed network as it is called while it is updated."""
        if self.count == 1 or self.mesh:
            return net
        return DistributedDataParallel(net, find_unused_parameters=partial)

    def exchanging(self, net: nn.Module, last: bool) -> AbstractContextManager[None]:
        """For one of the passes of a step: replicas exchange their gradients in the last one, shards in each."""
        return net.no_sync() if isinstance(net, DistributedDataParallel) and not last else nullcontext()

    def agree(self, flag: bool) -> bool:
        """The flag of the first worker."""
        if self.count == 1:
            return flag
        shared = torch.tensor(flag)
        dist.broadcast(shared, 0, group=self.control)
        return bool(shared)

    def gather(self, numbers: dict[str, Tensor]) -> dict[str, Tensor]:
        """The scalars of all workers under each name, (workers,), in rank order."""
        if not numbers:
            return {}
        own = torch.stack([numbers[key] for key in sorted(numbers)]).cpu()
        rows = [own]
        if self.count > 1:
            rows = [torch.empty_like(own) for _ in range(self.count)]
            dist.all_gather(rows, own, group=self.control)
        return dict(zip(sorted(numbers), torch.stack(rows, 1)))

    def scatter(self, numbers: dict[str, Tensor]) -> dict[str, Tensor]:
        """Undoes `gather`. If the number of workers has changed, each gets the mean."""
        kept = all(len(values) == self.count for values in numbers.values())
        return {key: (values[self.rank] if kept else values.mean()).to(self.device) for key, values in numbers.items()}


def first_worker() -> bool:
    """Whether this process is the first of its process group, or alone: the one that writes results."""
    return not dist.is_initialized() or dist.get_rank() == 0


def _mesh(device: torch.device, workers: int) -> DeviceMesh:
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh(device.type, (workers,))


def _is_shard(tensor: Tensor) -> TypeGuard[DTensor]:
    return hasattr(tensor, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """This worker's shard of a tensor."""
    return tensor.to_local() if _is_shard(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """The full tensor. A collective call: every worker must make it."""
    return tensor.full_tensor() if _is_shard(tensor) else tensor


def laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """A full tensor in the memory layout of `like`, or this worker's shard of it. Undoes `whole`.

    What is a shard already stays as it is.
    """
    if _is_shard(tensor):
        return tensor
    if _is_shard(like):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return torch.empty_like(like).copy_(tensor)


def load_whole(net: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Loads full tensors into a placed network; what is not among them stays."""
    own = net.state_dict()
    net.load_state_dict(own | {key: laid_out(value, own[key]) for key, value in tensors.items()})
