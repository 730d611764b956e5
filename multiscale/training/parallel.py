"""The workers of one training run: what each holds of a network, and what they tell each other."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel


class Workers:
    """This process among those that train together; alone where no process group was made.

    parallel: 'ddp' copies each network to every worker; 'fsdp' gives each worker a share of every layer's weights,
    gradients and optimiser state, for networks that do not fit one device.
    """

    def __init__(self, parallel: str, device: torch.device):
        self.count = dist.get_world_size() if dist.is_initialized() else 1
        self.rank = dist.get_rank() if dist.is_initialized() else 0
        self.device = device
        sharded = parallel == "fsdp" and self.count > 1
        self.mesh = init_device_mesh(device.type, (self.count,)) if sharded else None
        self.control = dist.new_group(backend="gloo") if self.count > 1 else None  # of plain numbers, off the device

    def layout(self, net: nn.Module) -> torch.memory_format:
        """channels_last for convolutional networks (5x on a processor, needed for tensor cores), else contiguous.

        Shares are contiguous: torch cuts no others.
        """
        convolutional = any(isinstance(module, nn.Conv2d) for module in net.modules())
        return torch.channels_last if convolutional and not self.mesh else torch.contiguous_format

    def place(self, net: nn.Module, layout: torch.memory_format) -> nn.Module:
        """The network on this worker's device, or this worker's share of it. Block by block: the whole may not fit."""
        if self.mesh:
            for module in reversed(list(net.modules())):  # the innermost first
                for block in module if isinstance(module, nn.ModuleList) else ():
                    if block is not None and not isinstance(block, nn.ModuleList):
                        fully_shard(block, mesh=self.mesh, reshard_after_forward=True)
            fully_shard(net, mesh=self.mesh, reshard_after_forward=True)
        return net.to(self.device, memory_format=layout)

    def wrap(self, net: nn.Module, partial: bool) -> nn.Module:
        """What is called in place of a placed network while it learns."""
        if self.count == 1 or self.mesh:
            return net
        return DistributedDataParallel(net, find_unused_parameters=partial)

    def agree(self, flag: bool) -> bool:
        """The flag of the first worker."""
        if self.count == 1:
            return flag
        told = torch.tensor(flag)
        dist.broadcast(told, 0, group=self.control)
        return bool(told)

    def gather(self, numbers: dict[str, Tensor]) -> dict[str, Tensor]:
        """Every worker's scalars under each name, in the order of the workers: (workers,)."""
        if not numbers:
            return {}
        own = torch.stack([numbers[key] for key in sorted(numbers)]).cpu()
        rows = [own]
        if self.count > 1:
            rows = [torch.empty_like(own) for _ in range(self.count)]
            dist.all_gather(rows, own, group=self.control)
        return dict(zip(sorted(numbers), torch.stack(rows, 1)))

    def scatter(self, numbers: dict[str, Tensor]) -> dict[str, Tensor]:
        """Undoes `gather`. Where the number of workers has changed, each holds the mean."""
        kept = all(len(values) == self.count for values in numbers.values())
        return {key: (values[self.rank] if kept else values.mean()).to(self.device) for key, values in numbers.items()}


def local(tensors: list[Tensor]) -> list[Tensor]:
    """What this worker holds of each tensor."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def whole(tensor: Tensor) -> Tensor:
    """The full tensor. Every worker has to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """A full tensor in the memory layout of another, or this worker's share of it. Undoes `whole`."""
    if isinstance(like, DTensor):
        return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
    return torch.empty_like(like).copy_(tensor)


def load_whole(net: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Loads full tensors into a placed network."""
    own = net.state_dict()
    net.load_state_dict({key: laid_out(value, own[key]) for key, value in tensors.items()})
