from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession
from scipy import stats

from m3rec_spark.schema import WALKS, CapacityError
from m3rec_spark.similarity.walks import (
    WalkGraph,
    build_graph,
    open_graph,
    plan,
    sample_walks,
    save_graph,
    walk,
    walk_matrix,
)

HISTORIES = [[0, 1, 2], [1, 2], [2, 3], [4], [0, 2, 3, 6]]  # item 4 only with itself, 5 with nobody
N_ITEMS = 7


def graph(histories: list[list[int]], n_items: int, self_loops: bool = False) -> WalkGraph:
    indptr = np.cumsum([0, *map(len, histories)])
    return build_graph(indptr, np.concatenate(histories).astype(np.int32), n_items, self_loops)


def co_occurrence(histories: list[list[int]], n_items: int, self_loops: bool) -> np.ndarray:
    X = np.zeros((len(histories), n_items))
    for user, items in enumerate(histories):
        X[user, items] = 1
    A = X.T @ X
    return A if self_loops else A - np.diag(np.diag(A))


@pytest.fixture(scope="module")
def shop() -> list[list[int]]:
    rng = np.random.default_rng(0)
    lengths = np.minimum(rng.zipf(1.6, 60), 15)
    return [sorted(rng.choice(20, length, replace=False).tolist()) for length in lengths]


def test_graph_by_hand() -> None:
    """Weights d - 1 of the users of item 0: users 0 and 4, 2 and 3; of item 3: users 2 and 4, 1 and 3."""
    made = graph(HISTORIES, N_ITEMS)
    low, high = made.item_indptr[3:5]
    assert made.users[low:high].tolist() == [2, 4]
    assert made.positions[low:high].tolist() == [1, 2]
    assert np.diff(made.cumulative[low : high + 1]).tolist() == [1, 3]
    assert made.degrees().tolist() == [5, 3, 2 + 1 + 1 + 3, 4, 0, 0, 3]
    assert graph(HISTORIES, N_ITEMS, self_loops=True).degrees()[4] == 1


@pytest.mark.parametrize("self_loops", [False, True])
def test_degrees_are_row_sums(shop: list[list[int]], self_loops: bool) -> None:
    A = co_occurrence(shop, 20, self_loops)
    np.testing.assert_array_equal(graph(shop, 20, self_loops).degrees(), A.sum(axis=1))


@pytest.mark.parametrize("self_loops", [False, True])
def test_transitions_are_those_of_eq_5(shop: list[list[int]], self_loops: bool) -> None:
    """Chi-square of the first and of the third step from every item against D^-1 A."""
    made, A = graph(shop, 20, self_loops), co_occurrence(shop, 20, self_loops)
    starts = np.flatnonzero(A.sum(axis=1)).astype(np.int32)
    walks = walk(made, np.repeat(starts, 2000), np.tile(np.arange(2000), len(starts)), 4, seed=11)
    for step in (1, 3):
        counts = np.zeros((20, 20))
        np.add.at(counts, (walks[:, step - 1], walks[:, step]), 1)
        assert not counts[A == 0].any()
        expected = counts.sum(axis=1, keepdims=True) * A / np.maximum(A.sum(axis=1, keepdims=True), 1)
        cells = A > 0
        statistic = ((counts - expected)[cells] ** 2 / expected[cells]).sum()
        freedom = cells.sum() - cells.any(axis=1).sum()
        assert stats.chi2.sf(statistic, freedom) > 1e-3
        uniform = counts.sum(axis=1, keepdims=True) * cells / np.maximum(cells.sum(axis=1, keepdims=True), 1)
        against = ((counts - uniform)[cells] ** 2 / uniform[cells]).sum()
        assert stats.chi2.sf(against, freedom) < 1e-6  # the test can tell weights from none


@given(st.integers(0, 2**64 - 1), st.integers(2, 8))
@settings(deadline=None, max_examples=25)
def test_every_step_is_an_edge(seed: int, length: int) -> None:
    A = co_occurrence(HISTORIES, N_ITEMS, self_loops=False)
    starts = np.repeat(np.array([0, 1, 2, 3, 6], np.int32), 20)
    walks = walk(graph(HISTORIES, N_ITEMS), starts, np.tile(np.arange(20), 5), length, seed)
    assert walks.shape == (100, length)
    assert walks.dtype == np.int32
    np.testing.assert_array_equal(walks[:, 0], starts)
    assert (A[walks[:, :-1], walks[:, 1:]] > 0).all()


def test_a_walk_does_not_depend_on_its_company(shop: list[list[int]]) -> None:
    made = graph(shop, 20)
    starts = np.flatnonzero(made.degrees()).astype(np.int32)
    together = walk(made, starts, np.full(len(starts), 5), 10, seed=3)
    alone = [walk(made, starts[k : k + 1], np.array([5]), 10, seed=3)[0] for k in range(len(starts))]
    np.testing.assert_array_equal(together, alone)
    longer = walk(made, starts, np.full(len(starts), 5), 15, seed=3)
    np.testing.assert_array_equal(longer[:, :10], together)
    assert (walk(made, starts, np.full(len(starts), 5), 10, seed=4) != together).any()


def test_saved_graph_is_mapped(tmp_path: Path) -> None:
    made = graph(HISTORIES, N_ITEMS, self_loops=True)
    save_graph(made, tmp_path)
    opened = open_graph(tmp_path)
    for name, array in vars(made).items():
        np.testing.assert_array_equal(getattr(opened, name), array)
        assert isinstance(getattr(opened, name), np.memmap)


def test_spark_walks(spark: SparkSession, tmp_path: Path) -> None:
    made = graph(HISTORIES, N_ITEMS)
    save_graph(made, tmp_path)
    frame = sample_walks(spark, tmp_path, per_item=3, length=6, seed=9)
    assert frame.schema.fieldNames() == WALKS.fieldNames()
    rows = {row["walk"]: row["items"] for row in frame.collect()}
    connected = [0, 1, 2, 3, 6]  # 4 and 5 have no neighbour
    assert sorted(rows) == [item * 3 + number for item in connected for number in range(3)]
    expected = walk(made, np.repeat(connected, 3).astype(np.int32), np.tile(np.arange(3), 5), 6, seed=9)
    np.testing.assert_array_equal([rows[key] for key in sorted(rows)], expected)


def test_same_bytes_on_any_partitioning(spark: SparkSession, tmp_path: Path, shop: list[list[int]]) -> None:
    save_graph(graph(shop, 20), tmp_path)
    tables = []
    for partitions in (1, 3, 7):
        frame = sample_walks(spark, tmp_path, per_item=30, length=8, seed=1, partitions=partitions)
        tables.append(walk_matrix(frame.toArrow()).tobytes())
    assert tables[0] == tables[1] == tables[2]
    assert len(tables[0]) > 4 * 8 * 30 * 10


def test_walk_matrix_is_in_the_order_of_ids() -> None:
    halves = [pa.table({"walk": [7], "items": [[5, 6]]}), pa.table({"walk": [2, 3], "items": [[1, 2], [3, 4]]})]
    assert walk_matrix(pa.concat_tables(halves)).tolist() == [[1, 2], [3, 4], [5, 6]]


def test_plan_refuses() -> None:
    assert plan(1000, 10) == 64 * 1000 + 32 * 10
    with pytest.raises(CapacityError, match="walk graph of 1,000,000,000,000,000 pairs"):
        plan(10**15, 10)
