"""Scaled dot-product attention of all networks, by the kernel that trains fastest on the device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(D)) v for q, k, v (N, heads, T, D).

    By torch's fused kernel, except in training on a CPU in bf16: there the fused backward pass takes 7 times as long as
    that of two batched products (torch 2.13, 16 tokens; docs/performance.md).
    """
    if q.requires_grad and q.device.type == "cpu" and q.dtype == torch.bfloat16:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)  # (N, heads, T, T)
        mixed: Tensor = scores.softmax(-1, dtype=torch.float32).to(v.dtype) @ v
        return mixed
    return F.scaled_dot_product_attention(q, k, v)
