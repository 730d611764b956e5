"""What this machine offers: device, native bf16, threads, memory."""

from __future__ import annotations

import resource
import sys

import torch
from torch import nn


def default_device() -> torch.device:
    """The first accelerator, else the processor."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def bf16_is_native(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware (Ampere and later; AMX or AVX512-BF16 on x86).

    Elsewhere bf16 is emulated and slower than fp32, so fp32 stays the default there.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def resolve_precision(precision: str, device: torch.device) -> str:
    """Turns 'auto' into 'bf16' or 'fp32'; leaves the other two as they are."""
    if precision == "auto":
        return "bf16" if bf16_is_native(device) else "fp32"
    return precision


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The autocast context of a resolved precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def cast_weights(net: nn.Module, precision: str) -> nn.Module:
    """Casts the weights of linear and convolution layers to what autocast casts them to at every call, once.

    The numbers stay the same. For networks that are only sampled from: autocast keeps no casts of frozen weights.
    """
    if precision == "bf16":
        for module in net.modules():
            if isinstance(module, nn.Linear | nn.Conv2d):
                module.to(torch.bfloat16)
    return net


def peak_memory_bytes(device: torch.device) -> int:
    """Peak bytes allocated on the accelerator, or the peak resident size of this process on a processor."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def describe(device: torch.device) -> str:
    """One line that names the hardware a timing was taken on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
