"""The benchmark of a GPU runs, on whatever device there is, and says what each bar asks."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from benchmarks import gpu


def test_with_tiny_networks_every_figure_is_a_number(monkeypatch):
    monkeypatch.setattr(gpu, "BARS", {"ssd_over_ddpm": 0.0, "training_share_of_peak": 1e9, "graph_over_eager": 1.5})
    found = gpu.measured(gpu.SMALL)
    assert all(math.isfinite(value) and value > 0 for value in found["figures"].values())
    assert {name: bar["met"] for name, bar in found["bars"].items()} == {
        "ssd_over_ddpm": True,
        "training_share_of_peak": False,
    } | ({"graph_over_eager": found["figures"].get("graph_over_eager", 0) >= 1.5} if torch.cuda.is_available() else {})


def test_operations_are_those_of_the_published_network():
    """DiT's paper has 118.6 Gflops for XL/2 at 32x32 latents, a multiply-add counting one."""
    assert gpu.flops(gpu.PUBLISHED.dit, 32, 4) / 2e9 == pytest.approx(118.6, rel=0.02)


def test_ratios_weigh_each_call_with_its_published_steps(monkeypatch):
    monkeypatch.setattr(gpu, "seconds", lambda calls, *_: {"first": 1.0, "second": 4.0, "dit": 5.0})
    found = gpu.msf(gpu.SMALL)
    assert found["msf_over_dit_250_steps"] == pytest.approx(500 * 5 / (200 * 1 + 50 * 4))
    assert found["msf_over_dit_100_steps"] == pytest.approx(200 * 5 / (200 * 1 + 50 * 4))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit, match="no GPU.*--small"):
        gpu.main()
