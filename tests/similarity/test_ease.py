from __future__ import annotations

import tracemalloc

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse

from m3rec_spark.schema import CapacityError, DataError, UsageError
from m3rec_spark.similarity import ease

BINARY = arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 9)), elements=st.sampled_from([0.0, 1.0]))


def lower(gram: np.ndarray) -> np.ndarray:
    """What `solve` takes: it must not read the upper half."""
    return np.asfortranarray(np.tril(gram) + np.triu(np.full(gram.shape, 99.0), k=1))


def cells(gram: np.ndarray, split: int = 3) -> list[pa.RecordBatch]:
    """The upper half as `split` batches, the first cells twice with a share each: markets add up."""
    a, b = np.nonzero(np.triu(gram))
    count = gram[a, b]
    a, b, count = np.r_[a, a], np.r_[b, b], np.r_[count - 1, np.ones_like(count)]
    parts = np.array_split(np.stack([a, b, count]).astype(np.int32), split, axis=1)
    return [pa.RecordBatch.from_arrays([pa.array(c) for c in part], ["item_a", "item_b", "count"]) for part in parts]


def reference(gram: np.ndarray, lambda_f: float) -> np.ndarray:
    """Column j of B by itself: the ridge regression of item j on all the others."""
    n = len(gram)
    weights = np.zeros((n, n))
    for j in range(n):
        rest = np.arange(n) != j
        system = gram[np.ix_(rest, rest)] + lambda_f * np.eye(n - 1)
        weights[rest, j] = np.linalg.solve(system, gram[rest, j])
    return weights


def random_gram(n: int, seed: int = 0) -> np.ndarray:
    X = (np.random.default_rng(seed).random((4 * n, n)) < 0.2).astype(float)
    return X.T @ X


def test_two_items_by_hand() -> None:
    gram = np.array([[2.0, 1.0], [1.0, 3.0]])  # + 1 I = [[3, 1], [1, 4]], inverse = [[4, -1], [-1, 3]] / 11
    weights = ease.solve(lower(gram), 1.0)
    np.testing.assert_allclose(weights, [[0, 1 / 3], [1 / 4, 0]], rtol=1e-14)  # -C01 / C11 and -C10 / C00


@given(BINARY, st.floats(0.1, 100))
@settings(deadline=None)
def test_each_column_is_a_ridge_regression(X: np.ndarray, lambda_f: float) -> None:
    gram = X.T @ X
    weights = ease.solve(lower(gram), lambda_f)
    np.testing.assert_allclose(weights, reference(gram, lambda_f), atol=1e-10)
    assert (np.diag(weights) == 0).all()


def test_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ease, "BLOCK", 4)  # 11 items: two whole blocks and a rest
    gram = random_gram(11)
    np.testing.assert_allclose(ease.solve(lower(gram), 2.0), reference(gram, 2.0), atol=1e-12)


def test_in_place() -> None:
    n = 1200
    gram = lower(random_gram(n))
    tracemalloc.start()
    weights = ease.solve(gram, 5.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert np.shares_memory(weights, gram)
    assert weights.flags.c_contiguous
    assert peak < ease.bytes_needed(n) - gram.nbytes < 2 * gram.nbytes


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_lambda_must_be_positive(value: float) -> None:
    with pytest.raises(UsageError, match="lambda_f must be > 0"):
        ease.solve(lower(np.eye(2)), value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_names_the_item(value: float) -> None:
    gram = lower(random_gram(6))
    gram[5, 3] = value
    with pytest.raises(DataError, match="column of item 3"):
        ease.solve(gram, 1.0)


def test_not_positive_definite_names_minor_and_item() -> None:
    gram = np.diag([1.0, 1.0, -5.0, 1.0])  # + 2 I: the third leading minor is the first negative one
    with pytest.raises(DataError, match="order 3 fails, at item 2"):
        ease.solve(lower(gram), 2.0)


def test_a_second_array_is_refused() -> None:
    for bad in (np.eye(3, dtype=np.float32), np.zeros((2, 3)), np.ascontiguousarray(random_gram(4))):
        with pytest.raises(ValueError, match="square float64 array in Fortran order"):
            ease.solve(bad, 1.0)


def test_duplicate_and_empty_items() -> None:
    X = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 0]], float)  # items 0 and 1 are the same, nobody has item 2
    weights = ease.solve(lower(X.T @ X), 1.0)
    np.testing.assert_allclose(weights, [[0, 2 / 3, 0], [2 / 3, 0, 0], [0, 0, 0]], atol=1e-15)  # 2 / (2 + 1)


@pytest.mark.parametrize("everything", [True, False])
def test_certificate(monkeypatch: pytest.MonkeyPatch, everything: bool) -> None:
    if not everything:
        monkeypatch.setattr(ease, "ALL_COLUMNS", 10)
        monkeypatch.setattr(ease, "SAMPLED_COLUMNS", 16)
    gram = random_gram(40)
    weights = ease.solve(lower(gram), 3.0)
    assert ease.certificate(cells(gram), weights, 3.0) < 1e-10
    wrong = weights + 1e-5
    np.fill_diagonal(wrong, 0)
    residual = (gram + 3.0 * np.eye(40)) @ wrong - gram
    np.fill_diagonal(residual, 0)
    with pytest.raises(DataError, match="not at its optimum"):
        ease.certificate(cells(gram), wrong, 3.0)
    if everything:
        with pytest.raises(DataError, match=f"diagonal is {np.abs(residual).max():.3g}"):
            ease.certificate(cells(gram), wrong, 3.0)


def test_certificate_of_nan() -> None:
    gram = random_gram(5)
    with pytest.raises(DataError, match="not at its optimum"):
        ease.certificate(cells(gram), np.full((5, 5), np.nan), 1.0)


def test_certificate_leaves_the_weights_alone() -> None:
    gram = random_gram(5)
    weights = ease.solve(lower(gram), 1.0)
    before = weights.copy()
    ease.certificate(cells(gram), weights, 1.0)
    np.testing.assert_array_equal(weights, before)


def test_plan_refuses_before_allocating() -> None:
    assert ease.plan(1000, memory_gb=1) == ease.bytes_needed(1000) > 8 * 1000**2
    with pytest.raises(CapacityError, match=r"8,0\d\d,\d{3},\d{3},\d{3} bytes.*1,000,000,000.*clean.min_item_users"):
        ease.plan(1_000_000, memory_gb=1)


def test_filter_and_normalise_by_hand() -> None:
    weights = np.array([[0, 0.3, 0.1, 0.009], [0.5, 0, -0.9, 0.01], [-0.2, 0.001, 0, 0], [0, 0, 0.02, 0]])
    kept = ease.filter_rows(weights, 0.01)
    expected = np.array([[0, 0.3, 0.1, 0], [0.5, 0, 0, 0.01], [0, 0, 0, 0], [0, 0, 0.02, 0]], np.float32)
    np.testing.assert_array_equal(kept.toarray(), expected)
    rows = ease.normalise_rows(kept)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(
        rows.toarray(), [[0, 3 / 4, 1 / 4, 0], [50 / 51, 0, 0, 1 / 51], [0, 0, 0, 0], [0, 0, 1, 0]], rtol=1e-6
    )


def test_epsilon_zero_keeps_no_zeros() -> None:
    assert ease.filter_rows(np.array([[0, 1.0], [-1.0, 0]]), 0.0).nnz == 1


def test_filter_by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = np.random.default_rng(0).normal(size=(10, 10))
    monkeypatch.setattr(ease, "BLOCK", 3)
    np.testing.assert_array_equal(
        ease.filter_rows(weights, 0.5).toarray(), np.where(weights >= 0.5, weights, 0).astype(np.float32)
    )


def test_tailor_by_hand() -> None:
    similarity = sparse.csr_matrix(np.array([[0, 0.25, 0.75], [1, 0, 0], [0.5, 0.5, 0]], np.float32))
    tailored = ease.tailor(similarity, np.array([2, 1]))  # 2 -> 1 is all that is left of row 2; of row 1 nothing
    np.testing.assert_array_equal(tailored.toarray(), [[0, 1], [0, 0]])
    assert similarity.nnz == 5


def test_similarity_round_trip() -> None:
    matrix = sparse.random(20, 20, 0.2, format="csr", dtype=np.float32, random_state=0)
    batches = list(ease.similarity_batches(matrix, rows=6))
    assert len(batches) == 4
    found = ease.similarity_matrix(pa.Table.from_batches(batches), 20)
    np.testing.assert_array_equal(found.toarray(), matrix.toarray())


def test_saved_weights(tmp_path) -> None:
    weights = ease.solve(lower(random_gram(30)), 1.0)
    ease.save_weights(weights, tmp_path / "weights.npy")
    stored = np.load(tmp_path / "weights.npy", mmap_mode="r")
    assert stored.flags.c_contiguous
    np.testing.assert_array_equal(stored, weights.astype(np.float32))
