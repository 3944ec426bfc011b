from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gram_table import random_counts, write_gram

from m3rec_spark.similarity.neighbours import choose_neighbours
from m3rec_spark.similarity.symmetric import SymmetricGram, symmetric_gram


def symmetric(tmp_path: Path, counts: np.ndarray, weight: float = 1.0) -> SymmetricGram:
    return symmetric_gram(write_gram([counts], tmp_path / "gram"), tmp_path, len(counts), np.array([weight]))


def by_sorting(A: np.ndarray, m: int) -> np.ndarray:
    """The same by a full sort of every column."""
    chosen = np.full((len(A), m), -1)
    for j in range(len(A)):
        others = np.flatnonzero((A[:, j] > 0) & (np.arange(len(A)) != j))
        cosine = A[others, j] / np.sqrt(A[others, others] * A[j, j])
        best = np.sort(others[np.lexsort((others, -np.round(cosine, 12)))][:m])
        chosen[j, m - len(best) :] = best
    return chosen


def test_the_most_alike_not_the_most_frequent(tmp_path: Path) -> None:
    # column 0 by A_i0^2 / A_ii: item 1 (a bestseller) 16/100, item 2 9/9, item 3 4/8
    A = np.array([[10, 4, 3, 2], [4, 100, 0, 0], [3, 0, 9, 0], [2, 0, 0, 8]])
    gram = symmetric(tmp_path, A)
    assert choose_neighbours(gram, 0, 1, 1).tolist() == [[2]]
    assert choose_neighbours(gram, 0, 1, 2).tolist() == [[2, 3]]


def test_of_equals_the_first(tmp_path: Path) -> None:
    A = np.full((6, 6), 2)
    A[np.diag_indices(6)] = 4
    assert choose_neighbours(symmetric(tmp_path, A), 0, 6, 2).tolist() == [
        [1, 2], [0, 2], [0, 1], [0, 1], [0, 1], [0, 1]
    ]  # fmt: skip


def test_fewer_and_none(tmp_path: Path) -> None:
    A = np.array([[2, 1, 0, 0], [1, 2, 1, 0], [0, 1, 2, 0], [0, 0, 0, 5]])
    gram = symmetric(tmp_path, A)
    assert choose_neighbours(gram, 0, 4, 2).tolist() == [[-1, 1], [0, 2], [-1, 1], [-1, -1]]
    assert choose_neighbours(gram, 0, 4, 99).tolist() == [[-1, -1, 1], [-1, 0, 2], [-1, -1, 1], [-1, -1, -1]]


@pytest.mark.parametrize("m", [1, 2, 5, 17])
@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_as_by_sorting_and_for_any_range(tmp_path: Path, m: int, weight: float) -> None:
    A = random_counts(40, 60, seed=3)
    gram = symmetric(tmp_path, A, weight)
    whole = choose_neighbours(gram, 0, 40, m)
    np.testing.assert_array_equal(whole, by_sorting(A, m))
    for first, last in ((0, 7), (7, 8), (8, 40)):
        np.testing.assert_array_equal(choose_neighbours(gram, first, last, m), whole[first:last])
