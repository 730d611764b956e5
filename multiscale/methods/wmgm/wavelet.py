"""Orthonormal periodised wavelet transforms of images: every level halves the resolution exactly and keeps the energy.

Filters and conventions are those of PyWavelets in its mode 'periodization'. The three detail bands of a level are in
its order (cH, cV, cD), which the released code of arXiv 2411.09356 calls LH, HL, HH: high-pass along the rows' index,
along the columns', along both. Channels are grouped by band, (N, 3C, h, w).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import pywt
import torch
from torch import Tensor

# PyWavelets' orthogonal families; its 'dmey' is orthogonal in name only
ORTHOGONAL = frozenset(name for family in ("haar", "db", "sym", "coif") for name in pywt.wavelist(family))
BLOCK = 2**20  # numbers that a transform works on at once, so that they stay in the processor's cache


@lru_cache(maxsize=256)
def filters(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The taps of the low-pass and of the high-pass filter, orthonormal to rounding.

    PyWavelets' tables of the symlets are orthonormal to 1e-11 only; each step below halves what is left of that.
    """
    low = np.array(pywt.Wavelet(name).dec_lo)
    middle = len(low) - 1
    for _ in range(20):
        excess = np.correlate(low, low, "full")  # of the products of the filter with itself, moved by even lags
        excess[::2], excess[middle] = 0, excess[middle] - 1
        low = low - 0.5 * np.convolve(low, excess)[middle:][: len(low)]
    high = low[::-1] * (-1.0) ** np.arange(1, len(low) + 1)
    return tuple(low.tolist()), tuple(high.tolist())


@lru_cache(maxsize=256)
def analysis_matrix(name: str, resolution: int) -> Tensor:
    """One level along one axis as an orthonormal float64 matrix: low-pass rows, then high-pass rows.

    Square, of the size `resolution`.
    """
    return torch.cat(_analysed(torch.eye(resolution, dtype=torch.float64), name, -2))


def _analysed(x: Tensor, name: str, axis: int) -> list[Tensor]:
    """The low and the high band along an axis: y_k = sum_j f_j x[2k + F/2 - j], modulo the size, for F taps f_j."""
    half, pair = x.shape[axis] // 2, filters(name)
    reach = len(pair[0]) // 2
    phases = []
    for first in (1 - reach, 2 - reach):
        rows = _every_second(x, first % 2, axis)
        phases.append(_wrapped(rows, first // 2, half + reach - 1, axis))
    windows = [phases[i % 2].narrow(axis, i // 2, half) for i in range(2 * reach)]  # x[2k + 1 - F/2 + i]
    return [_weighted(list(zip(reversed(taps), windows))) for taps in pair]


def _synthesised(low: Tensor, high: Tensor, name: str, axis: int) -> Tensor:
    """The adjoint of `_analysed`, and its inverse: x_n = sum_k f_j y_k over both bands, j = 2k + F/2 - n."""
    half, pair = low.shape[axis], filters(name)
    reach = len(pair[0]) // 2
    margin = reach // 2
    bands = [_wrapped(band, -margin, half + 2 * margin, axis) for band in (low, high)]
    shape = list(low.shape)
    shape[axis] *= 2
    x = low.new_empty(shape)
    for phase in (0, 1):
        terms = [
            (taps[j], band.narrow(axis, margin + (phase + j - reach) // 2, half))
            for taps, band in zip(pair, bands)
            for j in range((reach + phase) % 2, 2 * reach, 2)
        ]
        _every_second(x, phase, axis).copy_(_weighted(terms))
    return x


def _every_second(x: Tensor, first: int, axis: int) -> Tensor:
    """Every second row (axis -2) or column (-1), from `first` on."""
    return x[..., first::2] if axis == -1 else x[..., first::2, :]


def _wrapped(x: Tensor, start: int, count: int, axis: int) -> Tensor:
    """`count` rows or columns from `start` on, which begin again after the last."""
    size, shape = x.shape[axis], list(x.shape)
    shape[axis] = count
    found = x.new_empty(shape)
    at, done = start % size, 0
    while done < count:
        here = min(size - at, count - done)
        found.narrow(axis, done, here).copy_(x.narrow(axis, at, here))
        at, done = 0, done + here
    return found


def _weighted(terms: list[tuple[float, Tensor]]) -> Tensor:
    """A sum of tensors with weights, smallest first: in float32 the order keeps the transform orthonormal to 1e-6."""
    (weight, first), *others = sorted(terms, key=lambda term: abs(term[0]))
    total = weight * first
    for weight, term in others:
        total.add_(term, alpha=weight)
    return total


def _haar_split(x: Tensor) -> tuple[Tensor, Tensor]:
    """`Wavelet.split` for Haar: half sums and differences of neighbours.

    Few and large operations, because each costs the threads a barrier, which is slow on shared cores. The results are
    allocated once, because fresh pages cost more than the arithmetic.
    """
    N, C, H, W = x.shape
    low, bands = x.new_empty(N, C, H // 2, W // 2), x.new_empty(N, 3, C, H // 2, W // 2)
    for some in _blocks(x):
        left, right = x[some].unflatten(-2, (-1, 2)).unflatten(-1, (-1, 2)).unbind(-1)
        s = torch.lerp(left, right, 0.5)
        d = left - s
        (s_upper, s_lower), (d_upper, d_lower) = s.unbind(-2), d.unbind(-2)
        torch.add(s_upper, s_lower, out=low[some])
        torch.sub(s_upper, s_lower, out=bands[some, 0])
        torch.add(d_upper, d_lower, out=bands[some, 1])
        torch.sub(d_upper, d_lower, out=bands[some, 2])
    return low, bands.flatten(1, 2)


def _haar_merge(low: Tensor, details: Tensor) -> Tensor:
    """`Wavelet.merge` for Haar."""
    N, C, h, w = low.shape
    x = low.new_empty(N, C, h, 2, w, 2)
    for some in _blocks(x):
        vertical, horizontal, diagonal = details[some].chunk(3, 1)
        s_upper, d_upper = torch.lerp(low[some], vertical, 0.5), torch.lerp(horizontal, diagonal, 0.5)
        for row, s, d in ((0, s_upper, d_upper), (1, low[some] - s_upper, horizontal - d_upper)):
            torch.add(s, d, out=x[some, :, :, row, :, 0])
            torch.sub(s, d, out=x[some, :, :, row, :, 1])
    return x.view(N, C, 2 * h, 2 * w)


def _filtered_split(x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """`Wavelet.split` by the filters of any wavelet: along the columns, then along the rows."""
    N, C, H, W = x.shape
    low, bands = x.new_empty(N, C, H // 2, W // 2), x.new_empty(N, 3, C, H // 2, W // 2)
    for some in _blocks(x):
        left, right = _analysed(x[some], name, -1)
        low[some], bands[some, 0] = _analysed(left, name, -2)
        bands[some, 1], bands[some, 2] = _analysed(right, name, -2)
    return low, bands.flatten(1, 2)


def _filtered_merge(low: Tensor, details: Tensor, name: str) -> Tensor:
    """`Wavelet.merge` by the filters of any wavelet."""
    N, C, h, w = low.shape
    x = low.new_empty(N, C, 2 * h, 2 * w)
    for some in _blocks(x):
        vertical, horizontal, diagonal = details[some].chunk(3, 1)
        left, right = _synthesised(low[some], vertical, name, -2), _synthesised(horizontal, diagonal, name, -2)
        x[some] = _synthesised(left, right, name, -1)
    return x


class _Split(torch.autograd.Function):
    """`Wavelet.split` in a graph. The gradient of an orthonormal transform is its inverse."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, wavelet: Wavelet) -> tuple[Tensor, Tensor]:
        ctx.wavelet = wavelet
        return _haar_split(x) if wavelet.is_haar else _filtered_split(x, wavelet.name)

    @staticmethod
    def backward(ctx: Any, low: Tensor, details: Tensor) -> tuple[Tensor, None]:
        return ctx.wavelet.merge(low, details), None


class _Merge(torch.autograd.Function):
    """`Wavelet.merge` in a graph."""

    @staticmethod
    def forward(ctx: Any, low: Tensor, details: Tensor, wavelet: Wavelet) -> Tensor:
        ctx.wavelet = wavelet
        return _haar_merge(low, details) if wavelet.is_haar else _filtered_merge(low, details, wavelet.name)

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor, None]:
        return *ctx.wavelet.split(x), None


split: Callable[[Tensor, Wavelet], tuple[Tensor, Tensor]] = _Split.apply
merge: Callable[[Tensor, Tensor, Wavelet], Tensor] = _Merge.apply


def _blocks(x: Tensor) -> list[slice]:
    """The rows of a batch, a few at a time; on an accelerator all at once."""
    rows = max(1, BLOCK // max(1, x[0].numel())) if x.device.type == "cpu" and len(x) else max(1, len(x))
    return [slice(start, start + rows) for start in range(0, len(x), rows)]


class Wavelet:
    """One level of the transform by an orthogonal filter bank, and its inverse, which is its adjoint.

    Raises ValueError for a name that PyWavelets does not know, or whose filters are not orthogonal.
    """

    gain = 2  # a constant image doubles each level

    def __init__(self, name: str):
        self.name = name
        if name not in ORTHOGONAL:
            problem = "not orthogonal" if name in pywt.wavelist(kind="discrete") else "unknown"
            allowed = "haar, db1 to db38, sym2 to sym20, coif1 to coif17"
            raise ValueError(f"the wavelet {name!r} is {problem}; allowed: {allowed}")
        self.is_haar = pywt.Wavelet(name).dec_len == 2

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images x (N, C, H, W) -> the low band (N, C, H/2, W/2) and the details (N, 3C, H/2, W/2).

        Raises ValueError for an odd resolution.
        """
        check_resolutions(x.shape[-2:], 1)
        return split(x, self)

    def merge(self, low: Tensor, details: Tensor) -> Tensor:
        """Undoes `split`."""
        return merge(low, details, self)

    def grid(self, low: Tensor) -> Tensor:
        """The low band on the grid of the details: as it is."""
        return low


def check_resolutions(resolutions: tuple[int, ...], levels: int) -> None:
    """Raises ValueError unless there is at least one level and every resolution can be halved that often."""
    if levels < 1:
        raise ValueError(f"{levels} levels of a wavelet transform; allowed: at least 1")
    for resolution in resolutions:
        if resolution % 2**levels:
            raise ValueError(
                f"a resolution of {resolution} cannot be halved {levels} times; allowed: multiples of {2**levels}"
            )
