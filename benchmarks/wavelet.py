"""Our Haar transform against `pywt.dwt2`: one level of 16 images of 3x256x256 in float32, forward and inverse, in turn.

    python -m benchmarks.wavelet [REPEATS]

The target is 5 times faster. db4 is timed, too: other wavelets than Haar go over the image once for each tap.
"""

from __future__ import annotations

import importlib.metadata
import sys
from functools import partial

import pywt
import torch

from benchmarks.common import in_turn, ratio, save
from multiscale.methods.wmgm.wavelet import Wavelet

SHAPE = (16, 3, 256, 256)
MODE = "periodization"


def measure(name: str, repeats: int) -> dict:
    x = torch.randn(SHAPE)
    array, wavelet = x.numpy(), Wavelet(name)
    low, details = wavelet.split(x)
    theirs = pywt.dwt2(array, name, MODE)
    directions = {
        "forward": {"pywt": partial(pywt.dwt2, array, name, MODE), "ours": partial(wavelet.split, x)},
        "inverse": {"pywt": partial(pywt.idwt2, theirs, name, MODE), "ours": partial(wavelet.merge, low, details)},
    }
    found = {}
    for kind, calls in directions.items():
        seconds = in_turn(calls, repeats)
        found[kind] = {"times_faster": ratio(seconds, "pywt", "ours"), "seconds": seconds}
    return found


def main(repeats: int) -> None:
    rows = {name: measure(name, repeats) for name in ("haar", "db4")}
    save(
        "wavelet", {"repeats": repeats, "shape": SHAPE, "pywavelets": importlib.metadata.version("pywavelets"), **rows}
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 15)
