from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats

from m3rec_spark.similarity.philox import below, fraction, key, philox4x32

PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)
KNOWN = [  # Random123 1.09, tests/kat_vectors, lines "philox4x32 10"
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (PI[:4], PI[4:], (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]
WORD = st.integers(0, 2**32 - 1)


def drawn(counter: tuple[int, ...], seed: int) -> tuple[np.uint64, ...]:
    return philox4x32(*map(np.uint64, counter), *key(seed))


@pytest.mark.parametrize(("counter", "seed", "expected"), KNOWN)
def test_known_answers(counter: tuple[int, ...], seed: tuple[int, int], expected: tuple[int, ...]) -> None:
    words = drawn(counter, seed[0] + (seed[1] << 32))
    assert tuple(map(int, words)) == expected


def test_every_part_of_counter_and_key_counts() -> None:
    counters = [(1, 1, 1, 1), (2, 1, 1, 1), (1, 2, 1, 1), (1, 1, 2, 1), (1, 1, 1, 2)]
    words = [drawn(counter, 1) for counter in counters] + [drawn(counters[0], 2), drawn(counters[0], 1 + 2**32)]
    assert len({int(word) for four in words for word in four}) == 28


def test_key_by_hand() -> None:
    assert key(0xDEADBEEF_00000001) == (1, 0xDEADBEEF)
    assert key(2**64 + 5) == key(5)


@given(st.integers(1, 2**63 - 1), WORD, WORD)
@example(1, 2**32 - 1, 2**32 - 1)
@example(2**63 - 1, 2**32 - 1, 2**32 - 1)
@example(2**32 + 1, 2**32 - 1, 2**32 - 1)
def test_below_is_lemires_product(count: int, high: int, low: int) -> None:
    expected = (count * (high << 32 | low)) >> 64
    assert int(below(np.uint64(count), np.uint64(high), np.uint64(low))) == expected < count


def test_fraction_by_hand() -> None:
    assert fraction(np.uint64(0x6627E8D5), np.uint64(0xE169C58D)) == (0x6627E8D5_E169C58D >> 11) / 2**53
    assert fraction(np.uint64(2**31), np.uint64(0)) == 0.5
    assert fraction(np.uint64(2**32 - 1), np.uint64(2**32 - 1)) == 1 - 2**-53


def test_uniform_and_independent() -> None:
    words = [drawn((n % 100, n // 100, 3, 0), 42) for n in range(20_000)]
    first, second = (np.array([fraction(*four[k : k + 2]) for four in words]) for k in (0, 2))
    for sample in (first, second):
        assert stats.kstest(sample, "uniform").pvalue > 1e-3
    table = np.histogram2d(first, second, bins=10)[0]
    assert stats.chi2_contingency(table).pvalue > 1e-3
    integers = [int(below(np.uint64(7), *four[:2])) for four in words]
    assert stats.chisquare(np.bincount(integers, minlength=7)).pvalue > 1e-3
