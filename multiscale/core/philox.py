"""Philox4x32-10, a random generator without state, in tensor operations (Salmon et al., SC 2011).

Four 32-bit words of a counter and two of a key give four random words. So a number follows from its address alone, and
all numbers of a tensor are made at once, on the device that needs them. Words are int64 in [0, 2^32).
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

ROUNDS = 10
FACTORS = (0xD2511F53, 0xCD9E8D57)  # of the counter's first and third word
STRIDES = (0x9E3779B9, 0xBB67AE85)  # of the key's words, from round to round
WORD = 2**32 - 1


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Four random words (n,) of the four words (n,) of each counter, under one key."""
    a, b, c, d = counter
    for turn in range(ROUNDS):
        one, two = ((word + turn * stride) & WORD for word, stride in zip(key, STRIDES))
        left, right = a * FACTORS[0], c * FACTORS[1]  # int64 wraps: as bits, these are the products whatever their sign
        a, b = ((right >> 32) & WORD) ^ b ^ one, right & WORD
        c, d = ((left >> 32) & WORD) ^ d ^ two, left & WORD
    return a, b, c, d


def words_of(seed: int, stream: str, step: int, rows: slice, count: int, device: torch.device) -> Tensor:
    """Random words (rows, count): those of a row depend on (seed, stream, step, row) alone.

    The key is a digest of seed and stream. A counter is the place in the row over four, the row, and the step's two
    words.
    """
    digest = hashlib.blake2b(f"{seed}/{stream}".encode(), digest_size=8).digest()
    key = int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")
    blocks, own = -(-count // 4), rows.stop - rows.start
    place = torch.arange(blocks, device=device).repeat(own)
    row = torch.arange(rows.start, rows.stop, device=device).repeat_interleave(blocks, output_size=own * blocks)
    low, high = torch.full_like(row, step & WORD), torch.full_like(row, step >> 32)
    words = torch.stack(philox((place, row, low, high), key), dim=1)
    return words.view(own, 4 * blocks)[:, :count]


def uniform(words: Tensor) -> Tensor:
    """Numbers in [0, 1) of the upper 24 bits of words, which single precision holds."""
    return (words >> 8).float() * 2**-24


def normal(words: Tensor) -> Tensor:
    """Unit Gaussian numbers (rows, 2 n) of words (rows, 2 n): Box and Muller's transform of their two halves."""
    u, v = (((half.float() + 0.5) * 2**-32) for half in words.chunk(2, dim=1))
    radius, angle = (-2 * u.log()).sqrt(), 2 * math.pi * v
    return torch.cat([radius * angle.cos(), radius * angle.sin()], dim=1)
