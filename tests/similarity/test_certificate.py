from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from m3rec_spark.errors import DataError
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
    proof = certificate(lambda: cells(grams), B[:, columns], columns, 3.0, W)
    assert proof.residual < 1e-10
    assert proof.error < 1e-10
    wrong = B + 1e-5
    np.fill_diagonal(wrong, 0)
    A = np.tensordot(W, grams, 1)
    residual = (A + 3.0 * np.eye(40)) @ wrong - A
    np.fill_diagonal(residual, 0)
    with pytest.raises(DataError, match=f"diagonal is {np.abs(residual[:, columns]).max():.3g}"):
        certificate(lambda: cells(grams), wrong[:, columns], columns, 3.0, W)


def test_tolerance_is_relative_to_the_largest_entry() -> None:
    grams = two_markets(20)
    wrong = solved(grams, 3.0) + 1e-5
    np.fill_diagonal(wrong, 0)
    found = certificate(lambda: cells(grams), wrong, np.arange(20), 3.0, W, tolerance=1.0, error_limit=1.0).residual
    largest = (W[:, None, None] * grams).max()
    certificate(lambda: cells(grams), wrong, np.arange(20), 3.0, W, tolerance=1.001 * found / largest, error_limit=1.0)
    with pytest.raises(DataError):
        certificate(lambda: cells(grams), wrong, np.arange(20), 3.0, W, tolerance=0.999 * found / largest)


def test_nan_is_no_optimum() -> None:
    B = np.full((5, 5), np.nan)
    np.fill_diagonal(B, 0)
    with pytest.raises(DataError, match="not at its optimum"):
        certificate(lambda: cells(two_markets(5)), B, np.arange(5), 1.0, W)


@pytest.mark.parametrize("column", [0, 17, 39])
def test_nan_in_any_part_is_no_optimum(column: int) -> None:
    """The columns are looked at 16 at a time."""
    grams = two_markets(40)
    B = solved(grams, 3.0)
    B[np.arange(40) != column, column] = np.nan
    with pytest.raises(DataError, match="off the diagonal is nan"):
        certificate(lambda: cells(grams), B, np.arange(40), 3.0, W)


@pytest.mark.parametrize("wrong", ["ridge", "identity", "one entry"])
def test_what_satisfies_the_equation_but_not_the_constraint_is_refused(wrong: str) -> None:
    """(A + lambda I)^-1 A and I leave no residual at all; EASE's diagonal is 0."""
    grams = two_markets(10)
    A = np.tensordot(W, grams, 1)
    B = {"ridge": np.linalg.solve(A + 3.0 * np.eye(10), A), "identity": np.eye(10), "one entry": solved(grams, 3.0)}
    B["one entry"][4, 4] = 1e-300
    with pytest.raises(DataError, match="the diagonal of B is not 0"):
        certificate(lambda: cells(grams), B[wrong], np.arange(10), 3.0, W)


def test_single_precision_passes_at_large_counts() -> None:
    """Counts of 10^6 and lambda 30: the plain bound is too coarse by orders of magnitude, B is right to 1e-5."""
    rng = np.random.default_rng(2)
    popularity = 1 / np.arange(1, 61)
    X = (rng.random((4000, 60)) < popularity).astype(float)
    grams = np.round(300 * (X.T @ X))[None]
    A = grams[0] + 30.0 * np.eye(60)
    C = np.linalg.inv(A.astype(np.float32)).astype(float)
    B, exact = -C / np.diag(C), -np.linalg.inv(A) / np.diag(np.linalg.inv(A))
    np.fill_diagonal(B, 0)
    np.fill_diagonal(exact, 0)
    off = np.linalg.norm(B - exact, axis=0).max()
    assert off < 1e-4
    plain = certificate(lambda: cells(grams), B, np.arange(60), 30.0, np.ones(1), tolerance=1.0, error_limit=np.inf)
    limit = (off + plain.error) / 2
    assert limit > 1.2 * off
    proof = certificate(lambda: cells(grams), B, np.arange(60), 30.0, np.ones(1), tolerance=1.0, error_limit=limit)
    assert off <= proof.error * (1 + 1e-6) <= limit


def test_leaves_the_solution_alone() -> None:
    grams = two_markets(5)
    B = solved(grams, 1.0)
    before = B.copy()
    certificate(lambda: cells(grams), B, np.arange(5), 1.0, W)
    np.testing.assert_array_equal(B, before)


def test_error_by_hand() -> None:
    """A = [[2, 1], [1, 2]], lambda 1: B_12 = 1/3. With 0.4 there R_12 = 3 * 0.4 - 1 = 0.2, the error 1/15 < 0.2."""
    gram = np.array([[[2.0, 1.0], [1.0, 2.0]]])
    B = np.array([[0.0, 0.4], [1 / 3, 0.0]])
    proof = certificate(lambda: cells(gram, 1), B, np.arange(2), 1.0, np.ones(1), tolerance=1.0, error_limit=1.0)
    assert proof.residual == pytest.approx(0.2)
    assert proof.error == pytest.approx(0.2)
    closer = certificate(lambda: cells(gram, 1), B, np.arange(2), 1.0, np.ones(1), tolerance=1.0, error_limit=0.19)
    assert closer.error == pytest.approx(1 / 15)  # by conjugate gradients: one unknown, one step
    with pytest.raises(DataError, match=r"entries of B may be off by 0\.0667, over 0\.06: .*raise ease\.lambda_f"):
        certificate(lambda: cells(gram, 1), B, np.arange(2), 1.0, np.ones(1), tolerance=1.0, error_limit=0.06)


@pytest.mark.parametrize("lambda_f", [1e-4, 1e-2, 1.0, 100.0])
def test_the_error_is_a_bound(lambda_f: float) -> None:
    """Single precision, and items that depend on each other: the smaller lambda, the further B is off."""
    X = (np.random.default_rng(5).random((300, 40)) < 0.3).astype(float)
    X[:, 10:20] *= 1 - X[:, :10]
    X[:, 30:] = X[:, :10] + X[:, 10:20]
    grams, w = (X.T @ X)[None], np.array([0.37])
    A = w[0] * grams[0] + lambda_f * np.eye(40)
    C = np.linalg.inv(A.astype(np.float32)).astype(float)
    B, exact = -C / np.diag(C), -np.linalg.inv(A) / np.diag(np.linalg.inv(A))
    np.fill_diagonal(B, 0)
    np.fill_diagonal(exact, 0)
    proof = certificate(lambda: cells(grams), B, np.arange(40), lambda_f, w, tolerance=1e9, error_limit=np.inf)
    off = np.linalg.norm(B - exact, axis=0).max()
    assert off <= proof.error * (1 + 1e-6) + 1e-9
    if lambda_f == 1e-4:
        assert off > 0.01
        with pytest.raises(DataError, match="not at its optimum"):
            certificate(lambda: cells(grams), B, np.arange(40), lambda_f, w, tolerance=1e9)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_threads_share_the_columns(threads: int) -> None:
    grams = two_markets(70)
    B, columns = solved(grams, 2.0), np.arange(1, 70, 2)
    B[3, 33] += 1e-6  # the last of the parts
    proof = certificate(lambda: cells(grams), B[:, columns], columns, 2.0, W, tolerance=1.0, threads=threads)
    A = np.tensordot(W, grams, 1)
    residual = (A + 2.0 * np.eye(70)) @ B - A
    np.fill_diagonal(residual, 0)
    assert proof.residual == pytest.approx(np.abs(residual).max())
    assert proof.error == pytest.approx(np.linalg.norm(residual[:, 33]) / 2.0)
