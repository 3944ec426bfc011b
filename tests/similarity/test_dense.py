from __future__ import annotations

import numpy as np
import pytest

from m3rec_spark.similarity import dense


@pytest.mark.parametrize("left", "CF")
@pytest.mark.parametrize("right", "CF")
def test_product_in_place(left: str, right: str) -> None:
    a = np.array([[1.0, 2, 0], [0, 1, 3]], order=left)
    b = np.array([[1.0, 0], [2, 1], [1, 1]], order=right)
    plus = np.array([[10.0, 20], [30, 40]], order="F")
    result = dense.product(a, b, plus, alpha=-1.0)
    np.testing.assert_array_equal(result, [[5, 18], [25, 36]])
    assert np.shares_memory(result, plus)


def test_product_of_nothing() -> None:
    np.testing.assert_array_equal(dense.product(np.ones((2, 0)), np.ones((0, 3))), np.zeros((2, 3)))


@pytest.mark.parametrize("order", "CF")
def test_subtract_square_reads_the_lower_half(order: str) -> None:
    Y = np.array([[1.0, 2], [0, 3]], order=order)  # Y Y' = [[5, 6], [6, 9]]
    tile = np.array([[10.0, np.nan], [20, 30]], order="F")
    result = dense.subtract_square(tile, Y)
    np.testing.assert_array_equal(result, [[5, 14], [14, 21]])
    assert np.shares_memory(result, tile)


def test_triangular_solves_in_place() -> None:
    L = np.array([[2.0, 0], [1, 4]])
    for solve, expected in (
        (dense.solve_right, lambda X, M: X @ np.linalg.inv(M)),
        (dense.solve_left, lambda X, M: np.linalg.inv(M) @ X),
    ):
        for transposed in (False, True):
            X = np.array([[8.0, 4], [2, 16]], order="F")
            want = expected(X, L.T if transposed else L)
            result = solve(X, L, transposed)
            np.testing.assert_allclose(result, want, rtol=1e-15)
            assert np.shares_memory(result, X)


def test_factor_reads_the_lower_half_and_names_the_row() -> None:
    L, failing = dense.factor(np.array([[4.0, np.nan], [2, 5]], order="F"))
    np.testing.assert_array_equal(L, [[2, 0], [1, 2]])
    assert failing == -1
    assert dense.factor(np.array([[1.0, 0], [2, 4]], order="F"))[1] == 1  # 4 - 2 * 2 = 0
    np.testing.assert_allclose(dense.inverse_of_factored(L), np.array([[5, -2], [-2, 4]]) / 16)


def test_mirror_takes_the_lower_half(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "_BLOCK", 2)
    square = np.arange(25.0).reshape(5, 5, order="F")
    expected = np.tril(square) + np.tril(square, -1).T
    np.testing.assert_array_equal(dense.mirror(square), expected)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("rows", "others", "width"), [(3, 4, 2), (1, 1, 1), (0, 3, 2), (3, 0, 2), (2, 3, 0)])
def test_inner_products_are_those_of_the_rows(dtype: type, rows: int, others: int, width: int) -> None:
    """Whole numbers: exact in both precisions. A slice of rows is taken as it is."""
    rng = np.random.default_rng(0)
    left, right = (rng.integers(-5, 6, (size, width)).astype(dtype) for size in (rows, others + 2))
    found = dense.inner_products(left, right[1:-1])
    assert found.dtype == dtype
    assert found.flags.c_contiguous or 0 in found.shape
    np.testing.assert_array_equal(found, left @ right[1:-1].T)
