"""Searches of settings with Ray Tune."""

from pathlib import Path

SWEEPS = Path("params/sweeps")
