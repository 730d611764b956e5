"""The benchmark of a GPU runs, on whatever device there is, and says what each bar asks."""

from __future__ import annotations

import importlib.metadata
import json
import math
import sys

import pytest
import torch

from benchmarks import common, gpu


def test_with_tiny_networks_every_figure_is_a_number(monkeypatch):
    monkeypatch.setattr(gpu, "BARS", {"ssd_over_ddpm": 0.0, "training_share_of_peak": 1e9, "graph_over_eager": 1.5})
    *_, found = gpu.measured(gpu.SMALL)
    assert not found["failed"] and found["seconds"].keys() == {"training", "msf", "graph", "ssd"}
    assert all(math.isfinite(value) and value > 0 for value in found["figures"].values())
    assert {name: bar["met"] for name, bar in found["bars"].items()} == {
        "ssd_over_ddpm": True,
        "training_share_of_peak": False,
    } | ({"graph_over_eager": found["figures"].get("graph_over_eager", 0) >= 1.5} if torch.cuda.is_available() else {})


def test_a_section_that_fails_or_comes_too_late_leaves_the_others_their_figures(monkeypatch, tmp_path, capsys):
    """On a machine with a GPU that has torch and little else."""

    def broken(sizes):
        raise RuntimeError("CUDA error: out of luck\nand more")

    def missing(package):
        raise importlib.metadata.PackageNotFoundError(package)

    def late(sizes):
        raise AssertionError("it began")

    def slow(sizes):
        monkeypatch.setattr(gpu, "LATEST", -1)
        return {"graph_over_eager": 2.0}

    monkeypatch.setattr(gpu, "SECTIONS", (broken, slow, late))
    monkeypatch.setattr(gpu, "on_gpu", lambda: True)
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    monkeypatch.setattr(common.importlib.metadata, "version", missing)
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit, match="error: broken, late"):
        gpu.main()
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["failed"] == {"broken": "CUDA error: out of luck", "late": "not begun after -1 minutes"}
    assert found["bars"]["graph_over_eager"]["met"] and found["versions"] == {"torch": None, "diffusers": None}
    assert capsys.readouterr().out.count('"bars"') == 3, "what is known is printed after each section"


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
