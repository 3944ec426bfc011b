from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from m3rec_spark.schema import CapacityError, DataError, UsageError
from m3rec_spark.similarity import ease

BINARY = arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 9)), elements=st.sampled_from([0.0, 1.0]))


def lower(gram: np.ndarray) -> np.ndarray:
    """What `solve` takes: it must not read the upper half."""
    return np.asfortranarray(np.tril(gram) + np.triu(np.full(gram.shape, 99.0), k=1))


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


def test_plan_refuses_before_allocating() -> None:
    assert ease.plan(1000, memory_gb=1) == ease.bytes_needed(1000) > 8 * 1000**2
    with pytest.raises(CapacityError, match=r"8,0\d\d,\d{3},\d{3},\d{3} bytes.*1,000,000,000.*clean.min_item_users"):
        ease.plan(1_000_000, memory_gb=1)
