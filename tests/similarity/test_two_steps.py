"""The two-step walks: by hand, against the formula pair by pair, what is kept, and on Spark."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession
from shops import SMALL

from m3rec_spark.data.arrays import MarketArrays, save_arrays
from m3rec_spark.data.synthetic import generate_arrays
from m3rec_spark.similarity.market_rows import market_rows
from m3rec_spark.similarity.two_steps import task_bytes, two_steps, write_two_steps


def test_by_hand() -> None:
    """Item 1 has three users, of whom one goes on to item 2 with chance 1/2; from item 2 one of two goes back."""
    walk = two_steps(SMALL, 1, 10, 0.0).toarray()
    np.testing.assert_allclose(walk, [[0, 1 / 3 * 1 / 2, 0], [1 / 2 * 1 / 2, 0, 0], [0, 0, 0]], rtol=1e-6)
    here = two_steps(SMALL, 0, 10, 0.0).toarray()  # both markets' users, on the items 0, 1, 2
    np.testing.assert_allclose(here, [[0, 1 / 2, 0], [1 / 6, 0, 1 / 6], [0, 1 / 4, 0]], rtol=1e-6)
    against = two_steps(SMALL, 1, 10, 1.0).toarray()  # mean count 5/3: item 1 is 9/5 of it, item 2 is 6/5
    assert against[0, 1] == pytest.approx(1 / 6 / (6 / 5), rel=1e-6)
    assert against[1, 0] == pytest.approx(1 / 4 / (9 / 5), rel=1e-6)


def slow(arrays: MarketArrays, market: int, neighbours: int, beta: float) -> np.ndarray:
    """The formula, loop by loop; then all but the largest of every column are set to 0."""
    X = np.zeros((arrays.n_rows, arrays.n_items))
    for row in range(arrays.n_rows):
        X[row, arrays.items[arrays.indptr[row] : arrays.indptr[row + 1]]] = 1
    items = arrays.slot_items[arrays.market_slots(market)]
    counts, lengths = X.sum(axis=0)[items], X.sum(axis=1)
    P = np.zeros((len(items), len(items)))
    for a, i in enumerate(items):
        for b, j in enumerate(items):
            both = [row for row in range(len(X)) if X[row, i] and X[row, j]]
            if a != b and both:
                P[a, b] = sum(1 / lengths[row] for row in both) / counts[a]
    for column in P.T:
        column[np.argsort(-column, kind="stable")[neighbours:]] = 0
    return np.asarray(P / (np.maximum(counts, 1) / counts.mean()) ** beta)


@given(st.integers(0, 50), st.sampled_from([1, 3, 100]), st.sampled_from([0.0, 0.7, 2.0]))
@settings(deadline=None)
def test_is_the_formula(seed: int, neighbours: int, beta: float) -> None:
    arrays = generate_arrays(3, 20, 12, 4, 6.0, 2, seed)
    for market in range(3):
        found = two_steps(arrays, market, neighbours, beta)
        expected = slow(arrays, market, neighbours, beta)
        kept = (found != 0).sum(axis=0)
        assert kept.max() <= neighbours
        # of equals the rounding of the sums may choose: the values kept are the same, in every column
        np.testing.assert_allclose(np.sort(found.toarray(), axis=0), np.sort(expected, axis=0), rtol=1e-5)
        everything = slow(arrays, market, len(expected), beta)
        rows, columns = found.nonzero()
        np.testing.assert_allclose(found.toarray()[rows, columns], everything[rows, columns], rtol=1e-5)


def test_of_equals_the_first_is_kept() -> None:
    """Items 0, 1, 2 are bought by the same two users."""
    arrays = replace(
        SMALL,
        indptr=np.array([0, 3, 6, 6, 6, 6]), slots=np.array([0, 1, 2, 0, 1, 2], np.int32),
    )  # fmt: skip
    found = two_steps(arrays, 0, 1, 0.5).toarray()
    assert [int(row) for row in found.argmax(axis=0)] == [1, 0, 0]
    assert (np.count_nonzero(found, axis=0) == 1).all()


def test_a_market_with_one_item_or_no_buyer() -> None:
    one = replace(SMALL, slot_items=np.array([0, 1, 2, 3, 1, 2], np.int32), slot_offsets=np.array([0, 3, 4]))
    one = replace(one, indptr=np.array([0, 2, 3, 3, 3, 3]), slots=np.array([0, 1, 2], np.int32))
    assert two_steps(one, 1, 5, 0.7).shape == (1, 1)
    assert two_steps(one, 1, 5, 0.7).nnz == 0
    nobody = replace(SMALL, indptr=np.zeros(6, np.int64), slots=np.empty(0, np.int32))
    assert two_steps(nobody, 0, 5, 0.7).nnz == 0


def test_memory_by_hand() -> None:
    """Market 0 sells items with 1, 3 and 2 pairs in all, market 1 those with 3, 2 and 0; five users, two neighbours."""
    assert task_bytes(SMALL, 2) == 12 * 6 + 16 * 5 + 3 * (40 + 72 * 2)


def test_spark_writes_every_market(spark: SparkSession, tmp_path: Path) -> None:
    arrays = generate_arrays(3, 20, 12, 4, 6.0, 2, 0)
    for name in ("arrays", "walks"):
        (tmp_path / name).mkdir()
    save_arrays(arrays, tmp_path / "arrays")
    entries = write_two_steps(spark, tmp_path / "arrays", tmp_path / "walks", 4, 0.7)
    wanted = [two_steps(arrays, market, 4, 0.7) for market in range(3)]
    assert entries == sum(P.nnz for P in wanted)
    for market, P in enumerate(wanted):
        rows = market_rows(str(tmp_path / "walks"), market)(np.arange(P.shape[0]))
        assert (rows != P).nnz == 0
