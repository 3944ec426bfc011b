from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from faults import Cluster, folder_bytes
from gram_table import random_counts, write_gram
from pyspark.sql import SparkSession
from scipy import sparse

from m3rec_spark.errors import CorruptTableError, DataError, UsageError
from m3rec_spark.similarity import ease
from m3rec_spark.similarity.neighbourhood import (
    BLOCK,
    NeighbourhoodReport,
    plan,
    read_weights,
    solve_columns,
    solve_neighbourhoods,
    support_overlap,
)
from m3rec_spark.similarity.neighbours import choose_neighbours
from m3rec_spark.similarity.symmetric import SymmetricGram, symmetric_gram

THREE = np.array([[2, 1, 1], [1, 3, 2], [1, 2, 4]])
MANY = 2 * BLOCK + 90  # two whole files and a rest
LAMBDA = 3.0


def symmetric(tmp_path: Path, markets: list[np.ndarray], weights: list[float] | None = None) -> SymmetricGram:
    folder = tmp_path / "symmetric"
    folder.mkdir()
    gram = write_gram(markets, tmp_path / "gram", files=2)
    return symmetric_gram(gram, folder, len(markets[0]), np.array(weights or [1.0] * len(markets)))


def columns(gram: SymmetricGram, m: int, lambda_f: float) -> np.ndarray:
    """B as a dense matrix."""
    chosen = choose_neighbours(gram, 0, gram.n_items, m)
    B = np.zeros((gram.n_items, gram.n_items))
    for j, (items, weights) in enumerate(zip(chosen, solve_columns(gram, chosen, 0, lambda_f), strict=True)):
        assert not weights[items < 0].any()
        B[items[items >= 0], j] = weights[items >= 0]
    return B


def by_regression(A: np.ndarray, gram: SymmetricGram, m: int, lambda_f: float) -> np.ndarray:
    """The same, a ridge regression of every item on its neighbours."""
    B = np.zeros(A.shape)
    for j, padded in enumerate(choose_neighbours(gram, 0, len(A), m)):
        N = padded[padded >= 0]
        B[N, j] = np.linalg.solve(A[np.ix_(N, N)] + lambda_f * np.eye(len(N)), A[N, j])
    return B


def test_three_items_by_hand(tmp_path: Path) -> None:
    gram = symmetric(tmp_path, [THREE])
    # one neighbour, by A_ij^2 / A_ii: of 0 item 1 (1/3 against 1/4), of 1 item 2 (1 against 1/2), of 2 item 1
    one = [[0, 0, 0], [1 / 4, 0, 2 / 4], [0, 2 / 5, 0]]
    np.testing.assert_allclose(columns(gram, 1, 1.0), one, atol=1e-15)
    # two: [4 2; 2 5] b = (1, 1), [3 1; 1 5] b = (1, 2), [3 1; 1 4] b = (1, 2)
    two = [[0, 3 / 14, 2 / 11], [3 / 16, 0, 5 / 11], [2 / 16, 5 / 14, 0]]
    np.testing.assert_allclose(columns(gram, 2, 1.0), two, atol=1e-15)


@pytest.mark.parametrize("weights", [[1.0, 1.0], [0.3, 2.5]])
@pytest.mark.parametrize("m", [1, 4, 25])
def test_as_the_regression_on_the_neighbours(tmp_path: Path, m: int, weights: list[float]) -> None:
    markets = [random_counts(60, 50, seed=1), random_counts(60, 80, seed=2)]
    gram = symmetric(tmp_path, markets, weights)
    A = weights[0] * markets[0] + weights[1] * markets[1]
    np.testing.assert_allclose(columns(gram, m, LAMBDA), by_regression(A, gram, m, LAMBDA), atol=1e-13)


def test_with_all_others_it_is_ease(tmp_path: Path) -> None:
    A = random_counts(50, 400, seed=5, density=0.6)
    assert A.min() > 0  # all are neighbours of all
    exact = ease.solve(np.asfortranarray(A.astype(float)), LAMBDA)
    np.testing.assert_allclose(columns(symmetric(tmp_path, [A]), 49, LAMBDA), exact, atol=1e-13)


def test_with_all_others_it_is_ease_also_where_they_do_not_meet(tmp_path: Path) -> None:
    A = random_counts(30, 20, seed=6)
    assert (A == 0).sum() > 100
    others = np.array([[i for i in range(30) if i != j] for j in range(30)], np.int32)
    found = solve_columns(symmetric(tmp_path, [A]), others, 0, LAMBDA)
    exact = ease.solve(np.asfortranarray(A.astype(float)), LAMBDA)
    np.testing.assert_allclose(found, exact.T[~np.eye(30, dtype=bool)].reshape(30, 29), atol=1e-13)


def test_an_item_without_neighbours_has_an_empty_column(tmp_path: Path) -> None:
    A = np.array([[2, 1, 0], [1, 3, 0], [0, 0, 4]])
    np.testing.assert_allclose(columns(symmetric(tmp_path, [A]), 2, 1.0), [[0, 1 / 3, 0], [1 / 4, 0, 0], [0, 0, 0]])


def test_columns_do_not_depend_on_what_was_solved_before(tmp_path: Path) -> None:
    gram = symmetric(tmp_path, [random_counts(40, 60, seed=7)])
    chosen = choose_neighbours(gram, 0, 40, 9)
    whole = solve_columns(gram, chosen, 0, LAMBDA)
    np.testing.assert_array_equal(solve_columns(gram, chosen[13:21], 13, LAMBDA), whole[13:21])


def test_a_system_that_no_counts_can_have_is_refused(tmp_path: Path) -> None:
    A = np.array([[1, 0, 0], [0, 1, 50], [0, 50, 1]])
    with pytest.raises(DataError, match=r"A \+ 3.0 I of item 1 and its neighbours is not positive definite, at item 1"):
        columns(symmetric(tmp_path, [A]), 2, LAMBDA)


def many(tmp_path: Path) -> np.ndarray:
    """A of MANY items, some with one neighbour or none, in tmp_path / symmetric."""
    A = random_counts(MANY, 300, seed=8, density=0.3)
    for item in (5, 7, MANY - 1):
        A[item] = A[:, item] = 0
    A[0, 7] = A[7, 0] = A[7, 7] = 1
    symmetric(tmp_path, [A])
    return A


def test_on_spark_for_any_partitions(spark: SparkSession, tmp_path: Path) -> None:
    A, gram_folder = many(tmp_path), tmp_path / "symmetric"
    found, reports = [], []
    for partitions in (1, 3, 7, 3):  # the second 3 over the files of the first
        folder = tmp_path / str(partitions)
        folder.mkdir(exist_ok=True)
        reports.append(solve_neighbourhoods(spark, gram_folder, folder, LAMBDA, 20, partitions))
        found.append(folder_bytes(folder))
        assert sorted(file.name for file in folder.iterdir()) == sorted(found[0])  # nothing else is left
    assert len(found[0]) == 4
    assert all(files == found[0] for files in found)
    report = NeighbourhoodReport(items=MANY, neighbours=20, entries=20 * (MANY - 3) + 1, fewer=1, none=2)
    assert reports == [report] * 4

    B = read_weights(tmp_path / "3")
    assert B.dtype == np.float32
    assert B.nnz == report.entries
    assert B.has_canonical_format
    expected = by_regression(A, symmetric_gram(tmp_path / "gram", gram_folder, MANY, np.ones(1)), 20, LAMBDA)
    np.testing.assert_allclose(B.toarray(), expected, rtol=2e-7, atol=1e-13)


def solve_in_child(spark: SparkSession, folder: Path) -> None:
    solve_neighbourhoods(spark, folder / "symmetric", folder / "columns", LAMBDA, 20, 3)


def test_a_killed_executor_leaves_the_same_bytes(spark: SparkSession, cluster: Cluster, tmp_path: Path) -> None:
    many(tmp_path)
    (tmp_path / "clean").mkdir()
    solve_neighbourhoods(spark, tmp_path / "symmetric", tmp_path / "clean", LAMBDA, 20, 2)
    (tmp_path / "columns").mkdir()
    outcome = cluster.run(__file__, "solve_in_child", tmp_path, kill="executor", when="columns/*columns-*")
    assert outcome.failed_tasks
    assert folder_bytes(tmp_path / "columns") == folder_bytes(tmp_path / "clean")


@pytest.mark.parametrize(("lambda_f", "neighbours"), [(0.0, 5), (-1.0, 5), (np.nan, 5), (1.0, 0)])
def test_settings_are_positive(spark: SparkSession, tmp_path: Path, lambda_f: float, neighbours: int) -> None:
    symmetric(tmp_path, [THREE])
    with pytest.raises(UsageError, match=f"must be > 0, got {lambda_f} and {neighbours}"):
        solve_neighbourhoods(spark, tmp_path / "symmetric", tmp_path, lambda_f, neighbours)


@pytest.mark.parametrize("damage", ["no header", "absent", "cut", "foreign"])
def test_damaged_columns_are_refused(spark: SparkSession, tmp_path: Path, damage: str) -> None:
    symmetric(tmp_path, [THREE])
    solve_neighbourhoods(spark, tmp_path / "symmetric", tmp_path, 1.0, 2)
    assert read_weights(tmp_path).nnz == 6
    file = tmp_path / ("columns.json" if damage == "no header" else "columns-000000000.npy")
    if damage == "foreign":
        np.save(file, np.zeros(3))
    elif damage == "cut":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        file.unlink()
    with pytest.raises(CorruptTableError, match="run the stage again"):
        read_weights(tmp_path)


def test_overlap_of_supports() -> None:
    exact = sparse.csr_matrix(np.array([[0.0, 0.5, 0.2], [0.1, 0, 0], [0, 0, 0]]))
    other = sparse.csr_matrix(np.array([[0.0, 0.9, 0], [0.3, 0, 0.7], [0, 0.1, 0]]))
    assert support_overlap(exact, other) == 2 / 5  # both: (0, 1), (1, 0)
    assert support_overlap(exact, exact) == 1
    other.data[0] = 0  # an explicit zero is no entry
    assert support_overlap(exact, other) == 1 / 5
    empty = sparse.csr_matrix((3, 3))
    assert support_overlap(empty, empty) == 1
    assert support_overlap(empty, exact) == 0


def test_plan_by_hand() -> None:
    small = plan(n_items=1000, cells=5000, neighbours=200)
    assert small.flops == 1000 * 201**3 / 3
    assert small.driver_bytes == 60_000 + 24 * 200_000
    assert small.task_bytes == 12 * 4096 * 200 + 8 * 201**2 + 4000
    assert small.file_bytes == 60_000 + 24_000 + 8 * 200_000
    assert plan(11, 0, 200).driver_bytes == 660 + 24 * 11 * 10  # not more neighbours than others
