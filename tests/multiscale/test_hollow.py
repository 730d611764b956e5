"""Hollow tensors against full ones, and what lives of them against counts by hand."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from multiscale.core.device import autocast
from multiscale.hollow import Count, Hollow

SHAPE = (2, 6, 8)
WEIGHT = torch.ones(5, 8)
CALLS = {
    "a product under autocast": lambda x: F.linear(x, WEIGHT),
    "a transposed view": lambda x: x.transpose(1, 2) @ x,
    "parts": lambda x: x.chunk(3, dim=-1)[1],
    "several results": lambda x: torch.topk(x, 3)[1],
    "joined with numbers": lambda x: torch.cat([x, torch.ones(SHAPE)], 1),
    "in place": lambda x: (x * 2).add_(x.sum()),
    "by an index": lambda x: x[:, torch.tensor([0, 2])],
    "attention": lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None]),
    "a norm": lambda x: F.layer_norm(x, (8,)),
    "an image enlarged": lambda x: F.interpolate(x[None].contiguous(memory_format=torch.channels_last), scale_factor=2),
    "another type on its device": lambda x: x.to(torch.float64, copy=True) + torch.arange(8, device=x.device),
}


@pytest.mark.parametrize("name", CALLS)
def test_what_is_computed_has_the_shape_strides_and_type_of_full_tensors(name):
    for _ in range(2):  # worked out, and remembered
        with autocast("bf16", torch.device("cpu")):
            full, made = (CALLS[name](x) for x in (torch.ones(SHAPE), Hollow.empty(SHAPE, torch.float32)))
        assert type(made) is Hollow
        assert (made.shape, made.stride(), made.dtype) == (full.shape, full.stride(), full.dtype)


def test_gradients_reach_a_hollow_tensor():
    x = Hollow.empty(SHAPE, torch.float32).requires_grad_()
    (F.gelu(x) @ torch.ones(8, 3)).square().sum().backward()
    assert type(x.grad) is Hollow and x.grad.shape == SHAPE


def test_views_and_changes_in_place_take_no_memory_and_what_is_dropped_is_free_at_once():
    size = 4 * 2 * 6 * 8
    x = Hollow.empty(SHAPE, torch.float32)  # not made meanwhile
    with Count() as count:
        y = x + 1
        y = y.view(-1).add_(1).view(SHAPE)
        assert (count.now, count.most) == (size, size)
        for _ in range(3):
            y = y * 2  # the old one lives until the new one is there
        assert (count.now, count.most) == (size, 2 * size)
        product = torch.matmul(y, WEIGHT.t())
        assert product.shape == (2, 6, 5) and count.now == size + 4 * 2 * 6 * 5
    assert count.flops == 2 * 2 * 6 * 8 * 5
