"""B-Glob: the filter and the normalisation of B (paper, eq. 7, footnote 2).

Cost: one pass over the rows of B. Notation: row = item in the history, column = item scored.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import sparse


def filter_rows(rows: NDArray[np.float64], epsilon: float) -> sparse.csr_matrix:
    """Filter of eq. 7: the positive entries of B that are >= epsilon, float32 CSR. Negative weights go."""
    row, column = np.nonzero((rows >= epsilon) & (rows > 0))
    return sparse.csr_matrix((rows[row, column].astype(np.float32), (row, column)), shape=rows.shape)


def filter_sparse(matrix: sparse.csr_matrix, epsilon: float) -> sparse.csr_matrix:
    """The same of a B that is sparse already."""
    cells = matrix.tocoo()
    kept = (cells.data >= epsilon) & (cells.data > 0)
    entries = (cells.data[kept].astype(np.float32), (cells.row[kept], cells.col[kept]))
    return sparse.csr_matrix(entries, shape=matrix.shape)


def normalise_rows(matrix: sparse.csr_matrix) -> sparse.csr_matrix:
    """Normalize of eq. 7: every row divided by its sum (summed in float64); an empty row stays 0."""
    sums = np.asarray(matrix.sum(axis=1, dtype=np.float64)).ravel()
    scale = np.divide(1.0, sums, out=np.zeros_like(sums), where=sums != 0)
    data = (matrix.data * np.repeat(scale, np.diff(matrix.indptr))).astype(np.float32)
    return sparse.csr_matrix((data, matrix.indices, matrix.indptr), shape=matrix.shape)


def tailor(similarity: sparse.csr_matrix, items: NDArray[np.int32]) -> sparse.csr_matrix:
    """B_m of a market (footnote 2): B-Glob restricted to `items` in their order, and normalised again."""
    return normalise_rows(similarity[items][:, items].tocsr())
