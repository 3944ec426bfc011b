"""Intra-market item similarity: EASE^R in closed form (paper, eq. 3, 4; Steck 2019, arXiv:1905.03375).

B = I - C diagMat(1 / diag C),  C = (A + lambda I)^-1,  so that diag B = 0.
Cost: n^3 flops (Cholesky n^3/3, inverse from it 2 n^3/3) and one n x n float64 array, in place from A to B.

Notation: n items; A (n, n) co-occurrence counts; B (n, n) weights, row = item in the history, column = item scored.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

from m3rec_spark.schema import DataError, UsageError
from m3rec_spark.similarity.capacity import require

BLOCK = 512  # rows worked on at once: the extra memory is a few BLOCK x n


def bytes_needed(n_items: int) -> int:
    """Peak memory of `solve`: one n x n float64 array and a few blocks of rows."""
    return 8 * n_items**2 + 4 * 8 * BLOCK * n_items


def plan(n_items: int, memory_gb: float | None) -> int:
    """The bytes that the solver will take, checked before anything is allocated.

    Raises:
        CapacityError: when they are more than memory_gb (None: than 80% of what is free).
    """
    needed = bytes_needed(n_items)
    require(
        needed,
        f"EASE on {n_items:,} items (one {n_items:,} x {n_items:,} float64 array on the driver)",
        "raise clean.min_item_users to drop rare items, run the driver on a larger machine, or set ease.memory_gb "
        "if more is free than it seems",
        memory_gb,
    )
    return needed


def solve(gram: NDArray[np.float64], lambda_f: float) -> NDArray[np.float64]:
    """B of eq. 4, in the memory of `gram`, which is lost.

    Args:
        gram: (n, n) A, float64 in Fortran order; only the lower half is read.
        lambda_f: ridge weight, > 0.

    Returns:
        (n, n) B in C order with diagonal exactly 0: the same memory.

    Raises:
        UsageError: lambda_f is not positive.
        DataError: A holds NaN or infinity, or A + lambda I is not positive definite; names the item.
    """
    if not lambda_f > 0:
        raise UsageError(f"lambda_f must be > 0 so that X'X + lambda_f I is positive definite, got {lambda_f}")
    n = len(gram)
    if gram.shape != (n, n) or gram.dtype != np.float64 or not gram.flags.f_contiguous:
        raise ValueError(f"gram must be a square float64 array in Fortran order, got {gram.dtype} {gram.shape}")
    _refuse_non_finite(gram)
    gram[np.diag_indices(n)] += lambda_f
    factor, minor = lapack.dpotrf(gram, lower=1, clean=0, overwrite_a=1)
    if minor:
        raise DataError(
            f"X'X + {lambda_f} I is not positive definite: its leading minor of order {minor} fails, at item "
            f"{minor - 1}. Counts of distinct pairs cannot do that: rebuild the Gram, or raise ease.lambda_f"
        )
    inverse, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)
    weights: NDArray[np.float64] = inverse.T  # C order, upper half: rows are contiguous, and C is symmetric
    scale = -1.0 / np.diagonal(weights)
    _mirror_upper(weights)
    for rows in _blocks(n):
        weights[rows] *= scale
    weights[np.diag_indices(n)] = 0.0
    return weights


def _refuse_non_finite(gram: NDArray[np.float64]) -> None:
    """LAPACK may carry a NaN through to a partly NaN inverse without a word."""
    for columns in _blocks(len(gram)):
        bad = ~np.isfinite(gram[:, columns]).all(axis=0)
        if bad.any():
            raise DataError(f"the Gram holds NaN or infinity in the column of item {columns.start + int(bad.argmax())}")


def _mirror_upper(square: NDArray[np.float64]) -> None:
    """Copies the upper half onto the lower, by blocks, in place."""
    for rows in _blocks(len(square)):
        for columns in _blocks(rows.start):
            square[rows, columns] = square[columns, rows].T
        corner = square[rows, rows]
        corner[:] = np.triu(corner) + np.triu(corner, k=1).T


def _blocks(n: int) -> Iterator[slice]:
    for start in range(0, n, BLOCK):
        yield slice(start, min(start + BLOCK, n))
