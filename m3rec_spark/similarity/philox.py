"""Philox4x32-10, a counter-based random number generator (Salmon et al. 2011, SC'11; Random123), for compiled loops.

The number at (counter, key) is a function of both and of nothing else: no state, so no order of drawing, no partition
and no retry can change it. Cost: 10 rounds of two 32 x 32 bit multiplications for 128 bits, about 10 ns.
"""

from __future__ import annotations

import numpy as np

from m3rec_spark.compiled import compiled

Words = tuple[np.uint64, np.uint64, np.uint64, np.uint64]

_MULTIPLY_0, _MULTIPLY_1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL_0, _WEYL_1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _SHIFT, _DROPPED = np.uint64(0xFFFFFFFF), np.uint64(32), np.uint64(11)
_ROUNDS = 10


@compiled
def philox4x32(c0: np.uint64, c1: np.uint64, c2: np.uint64, c3: np.uint64, k0: np.uint64, k1: np.uint64) -> Words:
    """Four random 32 bit words at a counter of four words under a key of two; all uint64 that hold values < 2^32."""
    for _ in range(_ROUNDS):
        product_0, product_1 = _MULTIPLY_0 * c0, _MULTIPLY_1 * c2
        c0, c2 = (product_1 >> _SHIFT) ^ c1 ^ k0, (product_0 >> _SHIFT) ^ c3 ^ k1
        c1, c3 = product_1 & _LOW, product_0 & _LOW
        k0, k1 = (k0 + _WEYL_0) & _LOW, (k1 + _WEYL_1) & _LOW
    return c0, c1, c2, c3


@compiled
def below(count: np.uint64, high: np.uint64, low: np.uint64) -> np.uint64:
    """An integer in [0, count) of two random words: floor(count * word / 2^64) (Lemire 2019), integers throughout.

    Each value has probability 1 / count to within 2^-64: a relative bias below count / 2^64.
    """
    high, low = np.uint64(high), np.uint64(low)  # else a caller's signed integers would make all of this signed
    count_high, count_low = count >> _SHIFT, count & _LOW
    middle = count_low * high + (count_low * low >> _SHIFT)
    lower = count_high * low + (middle & _LOW)
    return count_high * high + (middle >> _SHIFT) + (lower >> _SHIFT)


@compiled
def fraction(high: np.uint64, low: np.uint64) -> float:
    """A number in [0, 1) of two random words: their upper 53 bits, so that it is never rounded up to 1."""
    return float((np.uint64(high) << _SHIFT | np.uint64(low)) >> _DROPPED) * 2.0**-53


def key(seed: int) -> tuple[np.uint64, np.uint64]:
    """The two words of a seed's low 64 bits."""
    return np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32 & 0xFFFFFFFF)
