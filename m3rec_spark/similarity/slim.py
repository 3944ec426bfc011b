"""SLIM (Ning & Karypis 2011; paper, eq. 2), exactly, by coordinate descent on the Gram.

    min ||X - X B||_F^2 + l1 ||B||_1 + l2 ||B||_F^2   with B >= 0 and diag B = 0;  A = X'X
    b_ij <- max(0, A_ij - sum_{k != i} A_ik b_kj - l1 / 2) / (A_ii + l2)

A and B are not negative, so that an item i that never met j (A_ij = 0) keeps b_ij = 0: the column of j is sought among
the items that co-occur with it, and nothing is lost. Cost: nnz(A_i) for every change of a b_ij, and nnz(A) a pass.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from m3rec_spark.compiled import compiled
from m3rec_spark.errors import UsageError


def fit_slim(
    gram: sparse.csr_matrix, l1: float, l2: float, tolerance: float = 1e-4, passes: int = 100
) -> tuple[sparse.csr_matrix, int]:
    """B, and how many of its columns had not come to rest.

    Args:
        gram: (n, n) A, all of it.
        l1: weight of the sum of B, >= 0.
        l2: ridge weight, > 0.
        tolerance: a column is done when no entry moved further in a pass.
        passes: over a column, at most.

    Returns:
        (n, n) B float32, row = item in the history, column = item scored.

    Raises:
        UsageError: a weight is out of range.
    """
    if not (0 <= l1 < np.inf and 0 < l2 < np.inf):
        raise UsageError(f"SLIM needs l1 >= 0 and l2 > 0, got l1={l1}, l2={l2}")
    gram = sparse.csr_matrix(gram, dtype=np.float64)
    gram.sort_indices()
    found, restless = _descend(gram.indptr, gram.indices, gram.data, l1 / 2, l2, tolerance, passes)
    columns = sparse.csr_matrix((found.astype(np.float32), gram.indices, gram.indptr), shape=gram.shape)
    weights = columns.T.tocsr()  # row j of `columns` is column j of B
    weights.eliminate_zeros()
    return weights, int(restless)


@compiled
def _descend(
    starts: NDArray[np.int32],
    columns: NDArray[np.int32],
    counts: NDArray[np.float64],
    threshold: float,
    l2: float,
    tolerance: float,
    passes: int,
) -> tuple[NDArray[np.float64], int]:
    """The column of every item j, at the places of row j of A; and how many stopped before they rested."""
    n = len(starts) - 1
    found, slope, diagonal = np.zeros(len(columns)), np.zeros(n), np.zeros(n)
    for i in range(n):
        for cell in range(starts[i], starts[i + 1]):
            if columns[cell] == i:
                diagonal[i] = counts[cell]
    restless = 0
    for j in range(n):
        for cell in range(starts[j], starts[j + 1]):
            slope[columns[cell]] = counts[cell]  # A_ij - sum_k A_ik b_kj, at b = 0; read within row j alone
        moved = np.inf
        for _ in range(passes):
            moved = 0.0
            for place in range(starts[j], starts[j + 1]):
                i = columns[place]
                if i == j:
                    continue
                wanted = max(0.0, slope[i] + diagonal[i] * found[place] - threshold) / (diagonal[i] + l2)
                step = wanted - found[place]
                if step != 0.0:
                    found[place] = wanted
                    moved = max(moved, abs(step))
                    for cell in range(starts[i], starts[i + 1]):
                        slope[columns[cell]] -= step * counts[cell]
            if moved <= tolerance:
                break
        restless += moved > tolerance
    return found, restless
