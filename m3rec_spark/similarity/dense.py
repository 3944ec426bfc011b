"""Products and triangular solves in place, on float arrays in Fortran order, by the BLAS of scipy.

BLAS takes an array in C order for the transpose of one in Fortran order: no factor is copied.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import blas, lapack

Matrix = NDArray[np.float64]
Real = TypeVar("Real", np.float64, np.float32)
_BLOCK = 512


def product(left: Matrix, right: Matrix, plus: Matrix | None = None, alpha: float = 1.0) -> Matrix:
    """Gives alpha left right + plus, in the memory of plus."""
    if 0 in (*left.shape, *right.shape):
        return np.zeros((len(left), right.shape[1]), order="F") if plus is None else plus
    (a, trans_a), (b, trans_b) = ((m, 0) if m.flags.f_contiguous else (m.T, 1) for m in (left, right))
    result: Matrix = blas.dgemm(alpha, a, b, float(plus is not None), plus, trans_a, trans_b, overwrite_c=1)
    return result


def inner_products(left: NDArray[Real], right: NDArray[Real]) -> NDArray[Real]:
    """(B, I) products of the rows of two arrays in C order, (B, d) and (I, d); in C order."""
    if 0 in (*left.shape, *right.shape):
        return np.zeros((len(left), len(right)), left.dtype)
    multiply = blas.sgemm if left.dtype == np.float32 else blas.dgemm
    result: NDArray[Real] = multiply(1.0, right.T, left.T, trans_a=1).T
    return result


def subtract_square(tile: Matrix, Y: Matrix) -> Matrix:
    """Tile - Y Y', in the memory of a symmetric tile, of which the lower half is read. Exactly symmetric."""
    a, trans = (Y, 0) if Y.flags.f_contiguous else (Y.T, 1)
    return mirror(blas.dsyrk(-1.0, a, 1.0, tile, trans, lower=1, overwrite_c=1))


def solve_right(X: Matrix, L: Matrix, transposed: bool) -> Matrix:
    """X L^-1, or X L'^-1, in the memory of X. L is lower triangular."""
    result: Matrix = blas.dtrsm(1.0, L, X, side=1, lower=1, trans_a=int(transposed), overwrite_b=1)
    return result


def solve_left(X: Matrix, L: Matrix, transposed: bool) -> Matrix:
    """L^-1 X, or L'^-1 X, in the memory of X. L is lower triangular."""
    result: Matrix = blas.dtrsm(1.0, L, X, side=0, lower=1, trans_a=int(transposed), overwrite_b=1)
    return result


def factor(A: Matrix) -> tuple[Matrix, int]:
    """L of the lower half of A = L L'; and -1, or the row at which A is not positive definite."""
    L, minor = lapack.dpotrf(A, lower=1, clean=1)
    if minor:
        return L, minor - 1
    bad = np.flatnonzero(~np.isfinite(L).all(axis=0))  # LAPACK may carry a NaN through without a word
    return L, int(bad[0]) if len(bad) else -1


def inverse_of_factored(L: Matrix) -> Matrix:
    """(L L')^-1, exactly symmetric."""
    return mirror(lapack.dpotri(L, lower=1)[0])


def mirror(square: NDArray[Real]) -> NDArray[Real]:
    """Copies the lower half onto the upper, by blocks, in place."""
    for start in range(0, len(square), _BLOCK):
        stop = start + _BLOCK
        square[start:stop, stop:] = square[stop:, start:stop].T
        corner: NDArray[Any] = square[start:stop, start:stop]
        corner[:] = np.tril(corner) + np.tril(corner, -1).T
    return square
