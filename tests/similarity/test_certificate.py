from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from m3rec_spark.schema import DataError
from m3rec_spark.similarity import certificate as module
from m3rec_spark.similarity.certificate import certificate, certificate_columns

W = np.array([1.0, 0.5])


def two_markets(n: int, seed: int = 0) -> np.ndarray:
    """(2, n, n) co-occurrence counts."""
    X = (np.random.default_rng(seed).random((2, 4 * n, n)) < 0.2).astype(float)
    return X.transpose(0, 2, 1) @ X


def cells(grams: np.ndarray, split: int = 3) -> list[pa.RecordBatch]:
    market, a, b = np.nonzero(np.triu(grams))
    order = np.random.default_rng(1).permutation(len(a))
    columns = np.stack([market, a, b, grams[market, a, b]]).astype(np.int32)[:, order]
    names = ["market", "item_a", "item_b", "count"]
    return [pa.RecordBatch.from_arrays([pa.array(c) for c in p], names) for p in np.array_split(columns, split, axis=1)]


def solved(grams: np.ndarray, lambda_f: float) -> np.ndarray:
    C = np.linalg.inv(np.tensordot(W, grams, 1) + lambda_f * np.eye(grams.shape[1]))
    B = -C / np.diag(C)
    np.fill_diagonal(B, 0)
    return B


@pytest.mark.parametrize("everything", [True, False])
def test_tells_the_optimum_from_what_is_near(monkeypatch: pytest.MonkeyPatch, everything: bool) -> None:
    if not everything:
        monkeypatch.setattr(module, "ALL_COLUMNS", 10)
        monkeypatch.setattr(module, "SAMPLED_COLUMNS", 16)
    grams = two_markets(40)
    columns = certificate_columns(40)
    assert len(columns) == (40 if everything else 16)
    B = solved(grams, 3.0)
    assert certificate(cells(grams), B[:, columns], columns, 3.0, W) < 1e-10
    wrong = B + 1e-5
    np.fill_diagonal(wrong, 0)
    A = np.tensordot(W, grams, 1)
    residual = (A + 3.0 * np.eye(40)) @ wrong - A
    np.fill_diagonal(residual, 0)
    with pytest.raises(DataError, match=f"diagonal is {np.abs(residual[:, columns]).max():.3g}"):
        certificate(cells(grams), wrong[:, columns], columns, 3.0, W)


def test_tolerance_is_relative_to_the_largest_entry() -> None:
    grams = two_markets(20)
    wrong = solved(grams, 3.0) + 1e-5
    np.fill_diagonal(wrong, 0)
    found = certificate(cells(grams), wrong, np.arange(20), 3.0, W, tolerance=1.0)
    largest = (W[:, None, None] * grams).max()
    certificate(cells(grams), wrong, np.arange(20), 3.0, W, tolerance=1.001 * found / largest)
    with pytest.raises(DataError):
        certificate(cells(grams), wrong, np.arange(20), 3.0, W, tolerance=0.999 * found / largest)


def test_nan_is_no_optimum() -> None:
    with pytest.raises(DataError, match="not at its optimum"):
        certificate(cells(two_markets(5)), np.full((5, 5), np.nan), np.arange(5), 1.0, W)


def test_leaves_the_solution_alone() -> None:
    grams = two_markets(5)
    B = solved(grams, 1.0)
    before = B.copy()
    certificate(cells(grams), B, np.arange(5), 1.0, W)
    np.testing.assert_array_equal(B, before)
