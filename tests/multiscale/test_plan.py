"""Plans against counts by hand, and against a network that is really run."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tiny_published import BLOCKS, NETWORKS, given
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from multiscale.hollow import Hollow, costs
from multiscale.methods.swd import adapter
from multiscale.plan import Understudy, size

N, D = 1000, 8
UNIT = 2 * N * D  # bytes of one activation in bf16


class Chain(nn.Module):
    """Frozen blocks of two linear layers without bias, each with a GELU, which alone keeps its input."""

    def __init__(self, blocks: int, recompute: bool):
        super().__init__()
        layers = [nn.Linear(D, D, bias=False), nn.GELU(), nn.Linear(D, D, bias=False), nn.GELU()]
        self.blocks = nn.ModuleList(nn.Sequential(*layers) for _ in range(blocks))
        self.recompute = recompute

    def forward(self, x):
        x = x.requires_grad_() if torch.is_grad_enabled() else x
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.recompute else block(x)
        return x


def costs_of(net: nn.Module, shape: tuple[int, ...], train: bool = False) -> tuple[int, int]:
    """Activations in bytes and FLOP of a call in bf16; with `train`, of its backward pass as well."""

    def call() -> None:
        with torch.set_grad_enabled(train):
            out = net(Hollow.empty(shape, torch.bfloat16))
        if train:
            out.sum().backward()

    return costs(call)


@pytest.mark.parametrize(
    ("recompute", "train", "kept", "products"),
    [
        (False, False, 4, 20),  # the input of the network, of a block and of a layer, and the output
        (False, True, 23, 40),  # 2 of each block, and the input, the output, a gradient
        (True, True, 14, 60),  # the input of each block; 2 of the last block and its output, a gradient
    ],
)
def test_what_lives_at_one_time_and_what_is_multiplied(recompute, train, kept, products):
    net = Chain(10, recompute).to(torch.bfloat16).requires_grad_(False)
    activations, flops = costs_of(net, (N, D), train)
    assert activations / UNIT == pytest.approx(kept, abs=0.01)
    assert flops == products * 2 * N * D * D


class Attention(nn.Module):
    def forward(self, q):
        q = q.requires_grad_() if torch.is_grad_enabled() else q
        return F.scaled_dot_product_attention(q, q, q)


def test_attention_counts_its_products_and_keeps_no_matrix_of_all_pairs():
    activations, flops = costs_of(Attention(), (1, 2, N, D))
    assert flops == 2 * (2 * 2 * N * N * D)
    assert activations < 8 * 2 * UNIT < 2 * N * N  # the matrix alone would take 2 heads times as much
    assert costs_of(Attention(), (1, 2, N, D), train=True)[1] == flops + 5 * (2 * 2 * N * N * D)


@pytest.mark.parametrize("family", NETWORKS)
def test_the_plan_of_a_network_is_what_a_call_costs(family):
    network, inputs = NETWORKS[family], given()
    with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        net = network.build()
        net(*inputs, BLOCKS[family], stop=True)
    stand = Understudy(net)
    with torch.no_grad():
        stand(*inputs, BLOCKS[family], stop=True)
        stand(*inputs)
    part, whole = (call.flops for call in stand.calls)
    assert part == counter.get_total_flops() < whole


def test_the_size_of_a_network_is_that_of_its_weights_and_buffers_full_or_empty():
    net = nn.Sequential(nn.Linear(D, D, bias=False), nn.BatchNorm1d(D, affine=False)).to(torch.bfloat16)
    net[0].requires_grad_(False)
    assert size(net) == (D * D, 0, 2 * D * D + 2 * 2 * D + 8)  # means and variances, and a count in int64
    Understudy(net.append(nn.Linear(D, 1, bias=False)))
    assert size(net) == (D * D + D, D, 2 * D * D + 2 * 2 * D + 8 + 4 * D)


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(D, D, bias=False), nn.Linear(D, 2 * D, bias=False))


@pytest.mark.parametrize(
    ("trained", "followed", "grad", "products"),
    [
        (True, True, False, 3),  # nobody asks for a gradient
        (True, False, True, 3 + 3 + 2),  # those of both weights, and of what lies between
        (True, True, True, 3 * 3),  # and of the input
        (False, True, True, 3 + 3),  # of inputs alone
        (False, False, True, 3),
    ],
)
def test_an_understudy_counts_what_autograd_would_ask_of_the_network(trained, followed, grad, products):
    """The second layer is two products of N D D, the first is one."""
    net = linear().requires_grad_(trained)
    stand = Understudy(net).instead()
    x = torch.randn(N, D, requires_grad=followed)
    with torch.set_grad_enabled(grad):
        out = [net(x), net(x)]
    assert [call.flops for call in stand.calls] == [products * 2 * N * D * D] * 2
    assert {call.edge for call in stand.calls} == {D}
    assert out[0].shape == (N, 2 * D) and not out[0].any() and out[0].requires_grad == (grad and (trained or followed))
    if grad and followed:
        assert torch.autograd.grad(out[0].sum(), x)[0].shape == x.shape  # a loss can be differentiated through it


def test_an_adapter_that_is_off_is_not_counted():
    adapted = adapter.adapted(nn.Sequential(nn.Linear(D, D, bias=False)), 2, r"0")
    stand, x = Understudy(adapted).instead(), torch.zeros(N, D)
    beneath = adapter.Beneath(adapted)
    for call in (adapted, beneath, adapted):
        with torch.no_grad():
            call(x)
    assert [call.flops for call in stand.calls] == [2 * N * D * (D + 4), 2 * N * D * D, 2 * N * D * (D + 4)]


def test_networks_that_are_built_alike_are_worked_out_once():
    known, x = {}, torch.zeros(N, D)
    nets = [linear(), linear(), nn.Sequential(linear()), nn.GELU(), nn.GELU(approximate="tanh")]
    stands = [Understudy(net, known) for net in nets]
    with torch.no_grad():
        for stand in stands:
            stand(x)
    assert stands[0].known is stands[1].known and stands[0].calls == stands[1].calls
    assert len({id(stand.known) for stand in stands}) == 4
