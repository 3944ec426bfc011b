"""Philox4x32-10, a counter-based random number generator, vectorised (Salmon et al. 2011, SC'11; Random123).

The number at (counter, key) is a function of both and of nothing else: no state, so no order of drawing, no partition
and no retry can change it. Cost: 10 rounds of two 32 x 32 bit multiplications a counter.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_MULTIPLY = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
_ROUNDS = 10

Words = tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64], NDArray[np.uint64]]


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """Four random 32 bit words at each counter.

    Args:
        counter: four arrays of one shape (or that broadcast), uint64 holding values below 2^32.
        key: two words below 2^32.
    """
    c0, c1, c2, c3 = counter
    for n in range(_ROUNDS):
        k0, k1 = (np.uint64((word + n * weyl) & 0xFFFFFFFF) for word, weyl in zip(key, _WEYL, strict=True))
        product0, product1 = _MULTIPLY[0] * c0, _MULTIPLY[1] * c2
        c0, c2 = (product1 >> _SHIFT) ^ c1 ^ k0, (product0 >> _SHIFT) ^ c3 ^ k1
        c1, c3 = product1 & _LOW, product0 & _LOW
    return c0, c1, c2, c3


def uniforms(
    first: NDArray[Any], second: NDArray[Any], third: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Two independent uniform numbers in [0, 1), of 53 bits, for each (first, second, third) under a 64 bit seed.

    Args:
        first: (K,) integers, non-negative and below 2^32.
        second: the same.
        third: below 2^32.
        seed: its low 64 bits are the key.
    """
    third_word = np.full(len(first), third, np.uint64)
    counter = (first.astype(np.uint64), second.astype(np.uint64), third_word, np.zeros_like(third_word))
    w0, w1, w2, w3 = philox4x32(counter, (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF))
    return _fraction(w0, w1), _fraction(w2, w3)


def _fraction(high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.float64]:
    bits = ((high << _SHIFT) | low) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53
