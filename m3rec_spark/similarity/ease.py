"""Intra-market item similarity: EASE^R in closed form (paper, eq. 3, 4, 7; Steck 2019, arXiv:1905.03375).

B = I - C diagMat(1 / diag C),  C = (A + lambda I)^-1,  so that diag B = 0.
Cost: n^3 flops (Cholesky n^3/3, inverse from it 2 n^3/3) and one n x n float64 array, in place from A to B.

Notation: n items; A (n, n) co-occurrence counts; B (n, n) weights, row = item in the history, column = item scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql.pandas.types import to_arrow_schema
from scipy import sparse
from scipy.linalg import lapack

from m3rec_spark.schema import SIMILARITY, DataError, UsageError
from m3rec_spark.similarity.capacity import require

BLOCK = 512  # rows worked on at once: the extra memory is a few BLOCK x n
ALL_COLUMNS = 2048  # up to here the certificate looks at every column
SAMPLED_COLUMNS = 64


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


def certificate(batches: Iterable[pa.RecordBatch], weights: NDArray[np.float64], lambda_f: float) -> float:
    """Proof of optimality: max |(A + lambda I) B - A| off the diagonal, which is 0 at the minimum of eq. 3.

    Looks at every column up to ALL_COLUMNS items, at a fixed sample of SAMPLED_COLUMNS beyond.

    Args:
        batches: the GRAM that B was solved from (item_a, item_b, count), in any order.
        weights: (n, n) B.
        lambda_f: as in `solve`.

    Raises:
        DataError: the residual is not rounding error.
    """
    n = len(weights)
    columns = np.arange(n) if n <= ALL_COLUMNS else np.random.default_rng(n).permutation(n)[:SAMPLED_COLUMNS]
    solution = weights[:, columns]
    residual = lambda_f * solution
    target = solution  # A B - A = A (B - I)
    target[columns, np.arange(len(columns))] -= 1.0
    largest = lambda_f
    for batch in batches:
        item_a, item_b, count = (batch[name].to_numpy() for name in ("item_a", "item_b", "count"))
        upper = sparse.csr_matrix((count.astype(np.float64), (item_a, item_b)), shape=(n, n))
        residual += upper @ target
        residual += sparse.triu(upper, k=1).T @ target
        largest = max(largest, upper.data.max(initial=0.0))
    residual[columns, np.arange(len(columns))] = 0.0
    worst = float(np.abs(residual).max(initial=0.0))
    tolerance = 1e-9 * largest
    if not worst <= tolerance:  # also when worst is NaN
        raise DataError(
            f"EASE is not at its optimum: max |(A + lambda I) B - A| off the diagonal is {worst:.3g}, over "
            f"{tolerance:.3g}: the system is too ill-conditioned for float64, raise ease.lambda_f"
        )
    return worst


def save_weights(weights: NDArray[np.float64], path: Path) -> None:
    """B as a float32 .npy file in C order, written by blocks of rows."""
    stored = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=weights.shape)  # type: ignore[no-untyped-call]
    for rows in _blocks(len(weights)):
        stored[rows] = weights[rows]
    stored.flush()


def filter_rows(weights: NDArray[np.float64], epsilon: float) -> sparse.csr_matrix:
    """Filter of eq. 7: the positive entries of B that are >= epsilon, float32 CSR. Negative weights go."""
    blocks = []
    for rows in _blocks(len(weights)):
        block = weights[rows]
        row, column = np.nonzero((block >= epsilon) & (block > 0))
        kept = block[row, column].astype(np.float32)
        blocks.append(sparse.csr_matrix((kept, (row, column)), shape=block.shape))
    return sparse.vstack(blocks, format="csr") if blocks else sparse.csr_matrix(weights.shape, dtype=np.float32)


def normalise_rows(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """Normalize of eq. 7: every row divided by its sum (summed in float64); an empty row stays 0."""
    sums = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
    scale = np.divide(1.0, sums, out=np.zeros_like(sums), where=sums != 0)
    data = (matrix.data * np.repeat(scale, np.diff(matrix.indptr))).astype(np.float32)
    return sparse.csr_matrix((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def tailor(similarity: sparse.csr_matrix, items: NDArray[np.int32]) -> sparse.csr_matrix:
    """B_m of a market (footnote 2): B-Glob restricted to `items` in their order, and normalised again."""
    return normalise_rows(similarity[items][:, items].tocsr())


def similarity_batches(similarity: sparse.csr_matrix, rows: int = BLOCK) -> Iterator[pa.RecordBatch]:
    """A CSR as Arrow batches of SIMILARITY, `rows` matrix rows each."""
    schema = to_arrow_schema(SIMILARITY)
    for start in range(0, similarity.shape[0], rows):
        block = similarity[start : start + rows].tocoo()
        columns = [pa.array(block.row + start, pa.int32()), pa.array(block.col, pa.int32()), pa.array(block.data)]
        yield pa.RecordBatch.from_arrays(columns, schema=schema)


def similarity_matrix(table: pa.Table, n_items: int) -> sparse.csr_matrix:
    """SIMILARITY as an (n, n) float32 CSR: the inverse of `similarity_batches`."""
    item_a, item_b, weight = (table[name].to_numpy() for name in SIMILARITY.fieldNames())
    return sparse.csr_matrix((weight, (item_a, item_b)), shape=(n_items, n_items))


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
