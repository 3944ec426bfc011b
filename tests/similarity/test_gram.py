from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession

from m3rec_spark.schema import GRAM
from m3rec_spark.similarity.gram import dense_gram, gram_by_market, pack_users, upper_gram

PAIRS = st.lists(st.tuples(st.integers(0, 6), st.integers(0, 9)), min_size=1, max_size=40, unique=True)


def matrix(pairs: list[tuple[int, int]]) -> np.ndarray:
    X = np.zeros((7, 10), np.int64)
    X[tuple(np.array(pairs).T)] = 1
    return X


def shop(n_markets: int = 3, n_users: int = 60, n_items: int = 25, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng(seed)
    cells = np.argwhere(rng.random((n_markets, n_users, n_items)) < 0.15).astype(np.int32)
    return pa.table(dict(zip(("market", "user", "item"), cells[rng.permutation(len(cells))].T, strict=True)))


def frame(spark: SparkSession, table: pa.Table, partitions: int) -> DataFrame:
    return spark.createDataFrame(table).repartition(partitions)


def rows(gram: DataFrame) -> list[tuple[int, ...]]:
    return sorted(tuple(row) for row in gram.collect())


def test_two_users_by_hand() -> None:
    # user 3 has items 7, 2; user 9 has 7, 5: item 7 twice, (2, 7) and (5, 7) once, (2, 5) never
    a, b, count = upper_gram(np.array([3, 3, 9, 9], np.int32), np.array([7, 2, 5, 7], np.int32))
    assert list(zip(a, b, count, strict=True)) == [(2, 2, 1), (2, 7, 1), (5, 5, 1), (5, 7, 1), (7, 7, 2)]
    assert {array.dtype for array in (a, b, count)} == {np.dtype(np.int32)}


@given(PAIRS)
@settings(deadline=None)
def test_upper_half_of_the_product(pairs: list[tuple[int, int]]) -> None:
    users, items = np.array(pairs, np.int32).T
    a, b, count = upper_gram(users, items)
    X = matrix(pairs)
    expected = np.triu(X.T @ X)
    found = np.zeros_like(expected)
    found[a, b] = count
    np.testing.assert_array_equal(found, expected)
    assert len(count) == np.count_nonzero(expected)  # no zero cell, none twice


def test_dense_sums_markets() -> None:
    cells = {"item_a": [0, 0, 1], "item_b": [0, 2, 1], "count": [3, 1, 4]}
    batches = [pa.RecordBatch.from_pydict({k: pa.array(v, pa.int32()) for k, v in cells.items()})] * 2
    gram = dense_gram(batches, 3)
    np.testing.assert_array_equal(gram, [[6, 0, 0], [0, 8, 0], [2, 0, 0]])
    assert gram.flags.f_contiguous


def test_a_cell_that_comes_twice_in_a_batch_counts_twice() -> None:
    batch = pa.RecordBatch.from_pydict({k: pa.array([1, 1], pa.int32()) for k in ("item_a", "item_b", "count")})
    assert dense_gram([batch], 2)[1, 1] == 2


@pytest.mark.parametrize("pairs_per_task", [1, 50, 10**9])  # a task a user or so, a few, one a market
def test_gram_by_market(spark: SparkSession, pairs_per_task: int) -> None:
    table = shop()
    gram = gram_by_market(frame(spark, table, 3), tile=10, pairs_per_task=pairs_per_task)
    assert gram.schema.fieldNames() == GRAM.fieldNames()
    expected = []
    for market in range(3):
        of_market = table.filter(pa.compute.equal(table["market"], market))
        X = np.zeros((60, 25), np.int64)
        X[of_market["user"], of_market["item"]] = 1
        half = np.triu(X.T @ X)
        expected += [(market, a // 10, b // 10, a, b, half[a, b]) for a, b in np.argwhere(half)]
    assert rows(gram) == sorted(expected)


def test_same_on_any_partitioning(spark: SparkSession) -> None:
    results = [rows(gram_by_market(frame(spark, shop(), p), tile=7, pairs_per_task=40)) for p in (1, 3, 7)]
    assert results[0] == results[1] == results[2]
    assert len(results[0]) > 100


def test_sorted_within_tiles(spark: SparkSession) -> None:
    gram = gram_by_market(frame(spark, shop(), 3), tile=7, pairs_per_task=40)
    tiles: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for row in gram.collect():  # in the order of the files
        tiles.setdefault(tuple(row)[:3], []).append(tuple(row)[3:5])
    assert len(tiles) > 3
    assert all(cells == sorted(cells) for cells in tiles.values())


def test_users_are_packed_by_squared_lengths(spark: SparkSession) -> None:
    """Market 0: 200 users of 5 items are 5,000 item pairs; market 1: 10 users of 1 item are 10."""
    users = np.r_[np.repeat(np.arange(200), 5), np.arange(10)].astype(np.int32)
    table = pa.table({
        "market": pa.array(np.repeat([0, 1], [1000, 10]).astype(np.int32)),
        "user": pa.array(users),
        "item": pa.array(np.r_[np.tile(np.arange(5), 200), np.zeros(10)].astype(np.int32)),
    })  # fmt: skip
    packed = pack_users(frame(spark, table, 3), pairs_per_task=1000).collect()
    assert len(packed) == 1010
    chunks = {(row["market"], row["user"]): row["chunk"] for row in packed}
    assert all(chunks[row["market"], row["user"]] == row["chunk"] for row in packed)  # no user in two
    loads = Counter((market, chunk) for (market, _), chunk in chunks.items())
    assert sorted(loads) == [(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (1, 0)]
    assert max(loads.values()) * 25 < 1500  # about 40 users, 1,000 pairs, each
