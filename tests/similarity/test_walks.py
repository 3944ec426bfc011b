from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession
from scipy import stats

from m3rec_spark.errors import UsageError
from m3rec_spark.schema import WALKS
from m3rec_spark.similarity import walks as module
from m3rec_spark.similarity.walks import (
    WalkGraph,
    build_graph,
    sample_walks,
    save_graph,
    walk,
    walk_matrix,
    write_walks,
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


@pytest.mark.parametrize("self_loops", [False, True])
def test_degrees_are_row_sums(shop: list[list[int]], self_loops: bool) -> None:
    A = co_occurrence(shop, 20, self_loops)
    np.testing.assert_array_equal(graph(shop, 20, self_loops).degrees(), A.sum(axis=1))


@pytest.fixture(scope="module")
def sparse_shop() -> list[list[int]]:
    """Baskets of near items on a ring of 20, so that many pairs never meet."""
    rng = np.random.default_rng(1)
    baskets = [rng.choice(5, rng.integers(2, 5), replace=False) + rng.integers(20) for _ in range(50)]
    return [sorted((basket % 20).tolist()) for basket in baskets]


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """The p-value of counts (rows: conditions) against the rows' probabilities; the possible cells only are drawn."""
    assert not counts[probabilities == 0].any()
    cells = probabilities > 0
    expected = counts.sum(axis=1, keepdims=True) * probabilities
    cells &= expected > 0
    statistic = ((counts - expected)[cells] ** 2 / expected[cells]).sum()
    return float(stats.chi2.sf(statistic, cells.sum() - cells.any(axis=1).sum()))


def rows_to_one(matrix: np.ndarray) -> np.ndarray:
    return matrix / np.maximum(matrix.sum(axis=-1, keepdims=True), 1e-300)


@pytest.mark.parametrize("self_loops", [False, True])
def test_transitions_are_those_of_eq_5(shop: list[list[int]], self_loops: bool) -> None:
    """Chi-square of the first and of the third step from every item against D^-1 A."""
    made, A = graph(shop, 20, self_loops), co_occurrence(shop, 20, self_loops)
    starts = np.flatnonzero(A.sum(axis=1)).astype(np.int32)
    walks = walk(made, np.repeat(starts, 2000), np.tile(np.arange(2000), len(starts)), 4, seed=11)
    for step in (1, 3):
        counts = np.zeros((20, 20))
        np.add.at(counts, (walks[:, step - 1], walks[:, step]), 1)
        assert chi_square(counts, rows_to_one(A)) > 1e-3
        assert chi_square(counts, rows_to_one((A > 0) * 1.0)) < 1e-6  # the test can tell weights from none


def test_co_occurrence_at_distance_r_is_the_rth_power(sparse_shop: list[list[int]]) -> None:
    """(D^-1 A)^r, which is what skip-gram over walks factorises (NetMF, WSDM 2018): r = 1..5, from every item."""
    made, A = graph(sparse_shop, 20), co_occurrence(sparse_shop, 20, self_loops=False)
    starts = np.flatnonzero(A.sum(axis=1)).astype(np.int32)
    walks = walk(made, np.repeat(starts, 3000), np.tile(np.arange(3000), len(starts)), 6, seed=5)
    transitions = rows_to_one(A)
    for distance in range(1, 6):
        counts = np.zeros((20, 20))
        np.add.at(counts, (walks[:, 0], walks[:, distance]), 1)  # one pair a walk: independent
        expected = np.linalg.matrix_power(transitions, distance)
        assert chi_square(counts, expected) > 1e-3
        assert chi_square(counts, (expected @ transitions + 1e-3) / 1.02) < 1e-6  # the next power is told from it


def node2vec(A: np.ndarray, p: float, q: float) -> np.ndarray:
    """(n, n, n) probabilities of a step from i to j having come from h, at [h, i, j]; the paper's, from A itself."""
    alpha = np.where(A > 0, 1.0, 1.0 / q)[:, None, :] * np.ones(len(A))[None, :, None]
    h = np.arange(len(A))
    alpha[h, :, h] = 1.0 / p
    return rows_to_one(alpha * A[None] * (A > 0)[:, :, None])


@pytest.mark.parametrize(("p", "q"), [(0.25, 4.0), (4.0, 0.25), (0.5, 0.5), (3.0, 2.0), (1.0, 2.0), (2.0, 1.0)])
def test_second_order_transitions_are_node2vecs(sparse_shop: list[list[int]], p: float, q: float) -> None:
    made, A = graph(sparse_shop, 20), co_occurrence(sparse_shop, 20, self_loops=False)
    starts = np.flatnonzero(A.sum(axis=1)).astype(np.int32)
    walks = walk(made, np.repeat(starts, 1500), np.tile(np.arange(1500), len(starts)), 6, 7, p, q)
    for step in (2, 5):
        counts = np.zeros((20, 20, 20))
        np.add.at(counts, tuple(walks[:, step - k] for k in (2, 1, 0)), 1)
        flat = counts.reshape(400, 20)
        assert chi_square(flat, node2vec(A, p, q).reshape(400, 20)) > 1e-3
        assert chi_square(flat, node2vec(A, 1.0, 1.0).reshape(400, 20)) < 1e-6  # the test can tell p, q from none
    first = np.zeros((20, 20))
    np.add.at(first, (walks[:, 0], walks[:, 1]), 1)
    assert chi_square(first, rows_to_one(A)) > 1e-3


def test_p_and_q_of_one_are_first_order(sparse_shop: list[list[int]]) -> None:
    made = graph(sparse_shop, 20)
    starts = np.flatnonzero(made.degrees()).astype(np.int32)
    numbers = np.zeros(len(starts), np.int64)
    first = walk(made, starts, numbers, 12, 3)
    np.testing.assert_array_equal(first, walk(made, starts, numbers, 12, 3, 1.0, 1.0))
    assert (first != walk(made, starts, numbers, 12, 3, 1.0, 2.0)).any()


@pytest.mark.parametrize(("p", "q"), [(0.0, 1.0), (1.0, -1.0), (1.0, 100.5), (float("nan"), 1.0)])
def test_p_and_q_have_bounds(p: float, q: float, tmp_path: Path) -> None:
    made = graph(HISTORIES, N_ITEMS)
    with pytest.raises(UsageError, match=r"walks\.(return_p|inout_q) is .* outside 0\.01 to 100"):
        walk(made, np.array([0], np.int32), np.array([0]), 3, 1, p, q)
    save_graph(made, tmp_path)
    for deliver in (sample_walks, write_walks):
        with pytest.raises(UsageError):
            deliver(None, tmp_path, *([tmp_path] if deliver is write_walks else []), 1, 3, 1, None, p, q)  # type: ignore[arg-type]


def test_a_pair_alone_walks_to_and_fro_at_any_p() -> None:
    """The only way is back: refused 99 times in 100, and taken in the end."""
    walks = walk(graph([[0, 1]], 2), np.array([0], np.int32), np.array([0]), 9, 1, 100.0, 1.0)
    assert walks.tolist() == [[0, 1] * 4 + [0]]


def test_a_start_without_neighbour_is_named() -> None:
    with pytest.raises(ValueError, match="item 4 has no neighbour"):
        walk(graph(HISTORIES, N_ITEMS), np.array([0, 4], np.int32), np.array([0, 0]), 3, 1)


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


@pytest.mark.parametrize(("p", "q"), [(1.0, 1.0), (0.5, 3.0)])
def test_a_walk_does_not_depend_on_its_company(sparse_shop: list[list[int]], p: float, q: float) -> None:
    """Nor on its length: 300 walks pass through the 128 places in another order than one."""
    made = graph(sparse_shop, 20)
    starts = np.resize(np.flatnonzero(made.degrees()).astype(np.int32), 300)
    numbers = np.arange(300)
    together = walk(made, starts, numbers, 10, 3, p, q)
    alone = [walk(made, starts[k : k + 1], numbers[k : k + 1], 10, 3, p, q)[0] for k in range(300)]
    np.testing.assert_array_equal(together, alone)
    np.testing.assert_array_equal(walk(made, starts[::-1], numbers[::-1], 10, 3, p, q), together[::-1])
    np.testing.assert_array_equal(walk(made, starts, numbers, 15, 3, p, q)[:, :10], together)
    assert (walk(made, starts, numbers, 10, 4, p, q) != together).any()
    assert (walk(made, starts, numbers + 1, 10, 3, p, q) != together).any()
    assert walk(made, starts[:0], numbers[:0], 10, 3, p, q).shape == (0, 10)


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


def test_same_bytes_on_any_partitioning(spark: SparkSession, tmp_path: Path, sparse_shop: list[list[int]]) -> None:
    save_graph(graph(sparse_shop, 20), tmp_path)
    tables = []
    for partitions in (1, 3, 7):
        frame = sample_walks(spark, tmp_path, 30, 8, 1, partitions, return_p=0.5)
        tables.append(walk_matrix(frame.toArrow()).tobytes())
    assert tables[0] == tables[1] == tables[2]
    assert len(tables[0]) > 4 * 8 * 30 * 10


def test_written_walks_are_the_same(
    spark: SparkSession, tmp_path: Path, sparse_shop: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """File by file on any partitioning; Spark reads them as WALKS."""
    save_graph(graph(sparse_shop, 20), tmp_path)
    expected = walk_matrix(sample_walks(spark, tmp_path, 7, 6, 2, inout_q=2.0).toArrow())
    monkeypatch.setattr(module, "_CHUNK", 50)
    contents = []
    for partitions in (1, 3, 7):
        target = tmp_path / f"to-{partitions}"
        target.mkdir()
        assert write_walks(spark, tmp_path, target, 7, 6, 2, partitions, inout_q=2.0) == len(expected)
        contents.append({path.name: path.read_bytes() for path in target.iterdir()})
    assert contents[0] == contents[1] == contents[2]
    assert sorted(contents[0]) == [f"walks-{first:015d}.parquet" for first in (0, 50, 100)]
    np.testing.assert_array_equal(walk_matrix(ds.dataset(target).to_table()), expected)
    read = spark.read.schema(WALKS).parquet(str(target))
    np.testing.assert_array_equal(walk_matrix(read.toArrow()), expected)


def test_walk_matrix_is_in_the_order_of_ids() -> None:
    halves = [pa.table({"walk": [7], "items": [[5, 6]]}), pa.table({"walk": [2, 3], "items": [[1, 2], [3, 4]]})]
    assert walk_matrix(pa.concat_tables(halves)).tolist() == [[1, 2], [3, 4], [5, 6]]
