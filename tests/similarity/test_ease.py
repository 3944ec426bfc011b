from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse

from m3rec_spark.errors import CapacityError, DataError, UsageError
from m3rec_spark.similarity import dense, ease

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
    square = np.asfortranarray(gram)
    assert (dense.mirror(lower(gram)) == square).all()
    np.testing.assert_allclose(ease.solve(lower(gram), 2.0), reference(gram, 2.0), atol=1e-12)


@pytest.mark.parametrize("n", [1, 4, 11])  # one block, and two with a rest
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_large_ones_by_blocks(monkeypatch: pytest.MonkeyPatch, n: int, dtype: type) -> None:
    monkeypatch.setattr(ease, "BLOCK", 4)
    monkeypatch.setattr(ease, "LAPACK_ITEMS", 0)
    gram = random_gram(n)
    square = lower(gram).astype(dtype, order="F")
    weights = ease.solve(square, 2.0)
    assert np.shares_memory(weights, square)
    np.testing.assert_allclose(weights, reference(gram, 2.0), atol=1e-12 if dtype == np.float64 else 1e-5)


def test_by_blocks_names_minor_and_item(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ease, "BLOCK", 2)
    monkeypatch.setattr(ease, "LAPACK_ITEMS", 0)
    with pytest.raises(DataError, match="order 4 fails, at item 3"):
        ease.solve(lower(np.diag([1.0, 1.0, 1.0, -5.0, 1.0])), 2.0)


@pytest.mark.parametrize("lapack_items", [0, 1000])
def test_an_ill_conditioned_gram(monkeypatch: pytest.MonkeyPatch, lapack_items: int) -> None:
    """Popular items in many baskets, condition about 1e10: the optimum still holds to rounding error."""
    monkeypatch.setattr(ease, "BLOCK", 32)
    monkeypatch.setattr(ease, "LAPACK_ITEMS", lapack_items)
    rng = np.random.default_rng(0)
    X = rng.random((900, 300)) < 3 / np.arange(1, 301)[rng.permutation(300)] ** 0.9
    gram = 1e8 * (X.T.astype(float) @ X)
    residual = (gram + 30 * np.eye(300)) @ ease.solve(lower(gram), 30.0) - gram
    np.fill_diagonal(residual, 0)
    assert np.abs(residual).max() < 1e-12 * gram.max()


IN_PLACE = """
import sys
from pathlib import Path
import numpy as np
from m3rec_spark.similarity import ease

ease.LAPACK_ITEMS, n = int(sys.argv[1]), 3000

def gram(n):  # without a second array, in whose memory a copy would go unseen
    X, A = np.random.default_rng(0).random((20, n)), np.empty((n, n), order="F")
    np.matmul(X.T, X, out=A.T)
    return A

def peak():  # not ru_maxrss, which a child has from the process that forked it
    line, = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return 1024 * int(line.split()[1])

ease.solve(gram(1000), 5.0)  # libraries and the threads' buffers
A = gram(n)
before = peak()
B = ease.solve(A, 5.0)
assert np.shares_memory(A, B) and B.flags.c_contiguous
taken = peak() - before
room = ease.bytes_needed(n) - A.nbytes
assert taken < room < 0.7 * A.nbytes, f"{taken:,} bytes, {room:,} planned, {A.nbytes:,} for A"
"""


@pytest.mark.parametrize("lapack_items", [4096, 100])
def test_in_place(lapack_items: int) -> None:
    """What the process takes, torch's memory included, is less than a second n x n array."""
    run = subprocess.run([sys.executable, "-c", IN_PLACE, str(lapack_items)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
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
    for bad in (np.eye(3, dtype=np.int64), np.zeros((2, 3)), np.ascontiguousarray(random_gram(4))):
        with pytest.raises(ValueError, match="square, float64 or float32, in Fortran order"):
            ease.solve(bad, 1.0)


def test_float32_is_near_and_takes_half() -> None:
    n = 300
    gram = random_gram(n)
    single = lower(gram).astype(np.float32, order="F")
    weights = ease.solve(single, 5.0)
    assert weights.dtype == np.float32
    assert np.shares_memory(weights, single)
    error = np.abs(weights - reference(gram, 5.0)).max()
    assert 0 < error < 1e-5
    assert ease.bytes_needed(n, itemsize=4) == ease.bytes_needed(n) / 2


@given(BINARY, st.floats(0.1, 100))
@settings(deadline=None)
def test_users_side(X: np.ndarray, lambda_f: float) -> None:
    """Woodbury: (X'X + lambda I)^-1 = (I - P) / lambda, P = X' (X X' + lambda I)^-1 X."""
    n = X.shape[1]
    inverse = (np.eye(n) - ease.users_projection(sparse.csr_matrix(X), n, lambda_f)) / lambda_f
    np.testing.assert_allclose(inverse, np.linalg.inv(X.T @ X + lambda_f * np.eye(n)), atol=1e-10)


def test_users_side_by_hand() -> None:
    # one user of items 0 and 1, weight 4: X X' + 1 = 9, P = [[4, 4], [4, 4]] / 9
    projection = ease.users_projection(sparse.csr_matrix([[2.0, 2.0]]), 2, 1.0)
    np.testing.assert_allclose(projection, np.full((2, 2), 4 / 9), rtol=1e-14)


def test_users_side_in_float32() -> None:
    X = np.random.default_rng(0).random((20, 50)) < 0.2
    projection = ease.users_projection(sparse.csr_matrix(X, dtype=np.float32), 50, 2.0)
    assert projection.dtype == np.float32
    wanted = np.eye(50) - 2.0 * np.linalg.inv(X.T.astype(float) @ X + 2.0 * np.eye(50))
    np.testing.assert_allclose(projection, wanted, atol=1e-5)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_by_torch_as_by_lapack(dtype: type) -> None:
    """The code for the GPU, on torch's CPU device."""
    gram = random_gram(70)
    square = lower(gram).astype(dtype, order="F")
    weights = ease.solve_on_gpu(square, 3.0, device="cpu")
    assert weights.dtype == dtype
    assert weights.flags.c_contiguous
    assert np.shares_memory(weights, square)
    assert (np.diag(weights) == 0).all()
    np.testing.assert_allclose(weights, reference(gram, 3.0), atol=1e-12 if dtype == np.float64 else 1e-5)


def test_by_torch_refuses_as_lapack() -> None:
    with pytest.raises(DataError, match="order 3 fails, at item 2"):
        ease.solve_on_gpu(lower(np.diag([1.0, 1.0, -5.0, 1.0])), 2.0, device="cpu")
    with pytest.raises(DataError, match="column of item 1"):
        ease.solve_on_gpu(lower(np.diag([1.0, np.nan])), 2.0, device="cpu")
    with pytest.raises(UsageError, match="lambda_f must be > 0"):
        ease.solve_on_gpu(lower(np.eye(2)), 0.0, device="cpu")


def test_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="torch sees no GPU"):
        ease.solve_on_gpu(lower(np.eye(2)), 1.0)


def test_a_gpu_that_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (ease.bytes_needed(3) - 1, 10**9))
    with pytest.raises(CapacityError, match=r"needs 49,224 bytes of GPU memory.*49,223 are free"):
        ease.solve_on_gpu(lower(np.eye(3)), 1.0, device="cuda:1")


def test_duplicate_and_empty_items() -> None:
    X = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 0]], float)  # items 0 and 1 are the same, nobody has item 2
    weights = ease.solve(lower(X.T @ X), 1.0)
    np.testing.assert_allclose(weights, [[0, 2 / 3, 0], [2 / 3, 0, 0], [0, 0, 0]], atol=1e-15)  # 2 / (2 + 1)


def test_plan_refuses_before_allocating() -> None:
    assert ease.plan(1000, memory_gb=1) == ease.bytes_needed(1000) > 8 * 1000**2
    with pytest.raises(CapacityError, match=r"8,0\d\d,\d{3},\d{3},\d{3} bytes.*1,000,000,000.*clean.min_item_users"):
        ease.plan(1_000_000, memory_gb=1)
