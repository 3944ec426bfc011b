from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from m3rec_spark.similarity.philox import philox4x32, uniforms

PI = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0)
KNOWN = [  # Random123 1.09, tests/kat_vectors, lines "philox4x32 10"
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (PI[:4], PI[4:], (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
]


def words(values: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    return tuple(np.array([value], np.uint64) for value in values)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert tuple(int(word[0]) for word in philox4x32(words(counter), key)) == expected


def test_vectorised_equals_one_by_one() -> None:
    counters = tuple(np.arange(5, dtype=np.uint64) * np.uint64(k + 1) for k in range(4))
    together = np.stack(philox4x32(counters, (7, 8)))
    alone = [np.stack(philox4x32(tuple(c[i : i + 1] for c in counters), (7, 8)))[:, 0] for i in range(5)]
    np.testing.assert_array_equal(together.T, alone)


def test_uniforms_by_hand() -> None:
    """Counter and key 0: 53 bits of the first known answer."""
    first, second = uniforms(np.zeros(1, np.int64), np.zeros(1, np.int64), 0, 0)
    assert first[0] == (0x6627E8D5_E169C58D >> 11) / 2**53
    assert second[0] == (0xBC57AC4C_9B00DBD8 >> 11) / 2**53


def test_every_part_of_the_key_counts() -> None:
    one, two = np.array([1]), np.array([2])
    drawn = [uniforms(one, one, 1, 1), uniforms(two, one, 1, 1), uniforms(one, two, 1, 1), uniforms(one, one, 2, 1)]
    drawn += [uniforms(one, one, 1, 2), uniforms(one, one, 1, 1 + 2**32)]
    assert len({float(u[0]) for pair in drawn for u in pair}) == 12


def test_uniform_and_independent() -> None:
    first, second = uniforms(np.arange(20_000) % 100, np.arange(20_000) // 100, 3, 42)
    for sample in (first, second):
        assert ((sample >= 0) & (sample < 1)).all()
        assert stats.kstest(sample, "uniform").pvalue > 1e-3
    table = np.histogram2d(first, second, bins=10)[0]
    assert stats.chi2_contingency(table).pvalue > 1e-3
