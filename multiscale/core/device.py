"""The device, its precision, memory layout and peak memory."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import nn

CPU = torch.device("cpu")

Net = TypeVar("Net", bound=nn.Module)


def default_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bf16_is_native(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware (Ampere or later; AMX or AVX512-BF16 on x86).

    Elsewhere bf16 is emulated and slower than fp32.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def resolve_precision(precision: str, device: torch.device) -> str:
    """Resolves 'auto' to 'bf16' where it is native and to 'fp32' elsewhere."""
    if precision == "auto":
        return "bf16" if bf16_is_native(device) else "fp32"
    return precision


@contextmanager
def allow_tf32() -> Iterator[None]:
    """Meanwhile a GPU may multiply in TF32 what stays in fp32: numbers of 8 bits of exponent and 10 of mantissa."""
    with _tf32(True):
        yield


@contextmanager
def full_precision() -> Iterator[None]:
    """Meanwhile a GPU multiplies matrices of fp32 in fp32, whatever `allow_tf32` has allowed."""
    with _tf32(False):
        yield


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    """Convolutions are left alone: torch computes them in TF32 by default."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The autocast context of a resolved precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def layout_of(net: nn.Module) -> torch.memory_format:
    """channels_last for convolutional networks (5x faster on a CPU, needed for tensor cores), else contiguous."""
    convolutional = any(isinstance(module, nn.Conv2d) for module in net.modules())
    return torch.channels_last if convolutional else torch.contiguous_format


def placed(net: Net, device: torch.device, layout: torch.memory_format) -> Net:
    """Moves a network to a device, its 4-dimensional weights in the given memory layout."""
    moved: Net = net.to(device, memory_format=layout)  # type: ignore[call-overload]  # torch's stub lacks the keyword
    return moved


def cast_weights(net: Net, precision: str) -> Net:
    """Casts the weights of linear and convolution layers once, as autocast would at every call.

    Results do not change. Use it for frozen networks: autocast does not cache the casts of frozen weights.
    """
    if precision == "bf16":
        for module in net.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.to(torch.bfloat16)
    return net


def peak_memory_bytes(device: torch.device) -> int:
    """Peak bytes allocated on the GPU, or the peak resident size of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def describe(device: torch.device) -> str:
    """The hardware that a timing was taken on, in one line."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
