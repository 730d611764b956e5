"""Orthonormal periodised wavelet transforms of images: every level halves the resolution exactly and keeps the energy.

Filters and conventions are those of PyWavelets in its mode 'periodization'. The three detail bands of a level are in
its order (cH, cV, cD), which the released code of arXiv 2411.09356 calls LH, HL, HH: high-pass along the rows' index,
along the columns', along both. Channels are grouped by band, (N, 3C, h, w).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pywt
import torch
from torch import Tensor

# PyWavelets' orthogonal families; its 'dmey' is orthogonal in name only
ORTHOGONAL = frozenset(name for family in ("haar", "db", "sym", "coif") for name in pywt.wavelist(family))
BLOCK = 2**20  # numbers that the Haar transform works on at once, so that they stay in the processor's cache


@lru_cache(maxsize=256)
def analysis_matrix(name: str, resolution: int) -> Tensor:
    """One level along one axis as an orthonormal float64 matrix: low-pass rows, then high-pass rows.

    Square, of the size `resolution`. Row k of a filter f of F taps has f_j at the place 2k + F/2 - j, modulo the size.
    """
    bank = pywt.Wavelet(name)
    starts = 2 * torch.arange(resolution // 2)[:, None] + bank.dec_len // 2
    columns = (starts - torch.arange(bank.dec_len)) % resolution
    halves = []
    for taps in (bank.dec_lo, bank.dec_hi):
        values = torch.tensor(taps, dtype=torch.float64).expand(resolution // 2, -1)
        halves.append(torch.zeros(resolution // 2, resolution, dtype=torch.float64).scatter_add_(1, columns, values))
    matrix = torch.cat(halves)
    # The tables of the symlets are orthonormal to 1e-11 only; one Newton step towards the polar factor corrects that.
    return 1.5 * matrix - 0.5 * matrix @ matrix.mT @ matrix


def _apply(rows: Tensor, x: Tensor, columns: Tensor) -> Tensor:
    """rows x columns^T for images x (N, C, H, W), in float64: in float32 the filters are not orthonormal to 1e-6."""
    rows, columns = rows.to(x.device), columns.to(x.device)
    with torch.autocast(x.device.type, enabled=False):
        return (rows @ x.double() @ columns.mT).to(x.dtype)


class _HaarSplit(torch.autograd.Function):
    """`Wavelet.split` for Haar: half sums and differences of neighbours, a few images at once to stay in the cache.

    Few and large operations, because each costs the threads a barrier, which is slow on shared cores. The results are
    allocated once, because fresh pages cost more than the arithmetic. The gradient is the adjoint, `merge`.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
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

    @staticmethod
    def backward(ctx: Any, low: Tensor, details: Tensor) -> Tensor:
        return haar_merge(low, details)


class _HaarMerge(torch.autograd.Function):
    """`Wavelet.merge` for Haar; its gradient is `split`."""

    @staticmethod
    def forward(ctx: Any, low: Tensor, details: Tensor) -> Tensor:
        N, C, h, w = low.shape
        x = low.new_empty(N, C, h, 2, w, 2)
        for some in _blocks(x):
            vertical, horizontal, diagonal = details[some].chunk(3, 1)
            s_upper, d_upper = torch.lerp(low[some], vertical, 0.5), torch.lerp(horizontal, diagonal, 0.5)
            for row, s, d in ((0, s_upper, d_upper), (1, low[some] - s_upper, horizontal - d_upper)):
                torch.add(s, d, out=x[some, :, :, row, :, 0])
                torch.sub(s, d, out=x[some, :, :, row, :, 1])
        return x.view(N, C, 2 * h, 2 * w)

    @staticmethod
    def backward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return haar_split(x)


haar_split: Callable[[Tensor], tuple[Tensor, Tensor]] = _HaarSplit.apply
haar_merge: Callable[[Tensor, Tensor], Tensor] = _HaarMerge.apply


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
        if self.is_haar:
            return haar_split(x)
        h, w = x.shape[-2] // 2, x.shape[-1] // 2
        y = _apply(analysis_matrix(self.name, 2 * h), x, analysis_matrix(self.name, 2 * w))
        return y[..., :h, :w], torch.cat([y[..., h:, :w], y[..., :h, w:], y[..., h:, w:]], 1)

    def merge(self, low: Tensor, details: Tensor) -> Tensor:
        """Undoes `split`."""
        if self.is_haar:
            return haar_merge(low, details)
        vertical, horizontal, diagonal = details.chunk(3, 1)
        y = torch.cat([torch.cat([low, horizontal], -1), torch.cat([vertical, diagonal], -1)], -2)
        return _apply(analysis_matrix(self.name, y.shape[-2]).mT, y, analysis_matrix(self.name, y.shape[-1]).mT)

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
