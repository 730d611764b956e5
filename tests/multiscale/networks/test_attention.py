"""Attention of the networks, in training and without gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from multiscale.networks.attention import attention


@pytest.mark.parametrize("tokens", [1, 9, 300])
def test_attention_and_its_gradients_in_training_in_bf16_are_those_of_torchs_kernel_in_double(tokens):
    torch.manual_seed(tokens)
    own = torch.randn(3, 2, 2, tokens, 8, dtype=torch.bfloat16, requires_grad=True)
    its = own.detach().double().requires_grad_()
    found, wanted = attention(*own), F.scaled_dot_product_attention(*its)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=0.02)
    weights = torch.randn_like(wanted)
    (found * weights).sum().backward()
    (wanted * weights).sum().backward()
    torch.testing.assert_close(own.grad.double(), its.grad, rtol=0, atol=0.06)
