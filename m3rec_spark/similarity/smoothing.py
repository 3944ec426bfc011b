"""V = B V0 + V0 (paper, eq. 8) and its gradient, for all items or for the rows that a batch needs.

V0 -> V is linear, V = S V0 with S = B + I, so that the gradient by V0 is S' times the gradient by V. `Smoothing` keeps
S and S' and multiplies all rows. `RowSmoothing` computes V_R = S[R, :] V0 for the R rows of a batch, and the gradient
only for the rows of V0 that they reach: its cost follows nnz(S[R, :]), not n.

Cost of a step, `Smoothing`: 8 nnz(S) d flops; `RowSmoothing`: 8 nnz(S[R, :]) d and one sort of nnz(S[R, :]) integers.
Notation: n items; d dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from m3rec_spark.similarity.skipgram_loss import Pair, sums

_WIDTH = 64  # columns of a product at once on a CPU


@dataclass(frozen=True)
class Csr:
    """A sparse matrix on the device; of integers it has those of scipy, 32 bit where they suffice."""

    starts: Tensor
    columns: Tensor
    data: Tensor

    @classmethod
    def of(cls, matrix: sparse.csr_matrix, device: torch.device) -> Csr:
        """The matrix, sharing its memory on a CPU."""
        integers = np.int32 if matrix.nnz < 2**31 else np.int64
        parts = (matrix.indptr.astype(integers, copy=False), matrix.indices.astype(integers, copy=False), matrix.data)
        return cls(*(torch.from_numpy(part).to(device) for part in parts))

    def __matmul__(self, dense: Tensor) -> Tensor:
        data = self.data.to(dense.dtype)
        if dense.device.type != "cpu":
            return sums(dense, self.columns, self.starts, data)
        # a row of `dense` is fetched once for each entry: narrow copies of it stay in a core's cache
        parts = [sums(part.contiguous(), self.columns, self.starts, data) for part in torch.split(dense, _WIDTH, 1)]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def rows(self, wanted: Tensor) -> Csr:
        """The wanted rows (k,), in their order."""
        first = self.starts[wanted].long()
        lengths = self.starts[wanted + 1].long() - first
        starts = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
        entries = torch.repeat_interleave(first - starts[:-1], lengths)
        entries += torch.arange(len(entries), device=entries.device)
        return Csr(starts, self.columns[entries].long(), self.data[entries])

    def transposed(self) -> tuple[Tensor, Csr]:
        """The columns that have entries, ascending (c,), and the transpose in these rows only: (c, rows)."""
        order = torch.sort(self.columns, stable=True)
        reached, counts = torch.unique_consecutive(order.values, return_counts=True)
        starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        row = torch.repeat_interleave(
            torch.arange(len(self.starts) - 1, device=self.starts.device), self.starts.diff().long()
        )
        return reached, Csr(starts, row[order.indices], self.data[order.indices])


class Smoothing:
    """Eq. 8 for all items; without a similarity it is the identity."""

    def __init__(self, similarity: sparse.csr_matrix | None, device: torch.device) -> None:
        """similarity: (n, n) B-Glob; it is kept with its transpose, 16 bytes an entry."""
        self.forward_matrix = self.backward_matrix = None
        if similarity is not None:
            matrix = plus_identity(similarity)
            self.forward_matrix = Csr.of(matrix, device)
            self.backward_matrix = Csr.of(matrix.T.tocsr(), device)

    def __call__(self, initial: Tensor) -> Tensor:
        """V = S V0, (n, d)."""
        return initial if self.forward_matrix is None else self.forward_matrix @ initial

    def backward(self, gradient: Tensor) -> Tensor:
        """S' times the gradient by V: that by V0, (n, d)."""
        return gradient if self.backward_matrix is None else self.backward_matrix @ gradient


class RowSmoothing:
    """Eq. 8 for the rows of a batch; without a similarity they are rows of V0."""

    def __init__(self, similarity: sparse.csr_matrix | None, device: torch.device) -> None:
        """similarity: (n, n) B-Glob; 8 bytes an entry are kept."""
        self.matrix = None if similarity is None else Csr.of(plus_identity(similarity), device)

    def all(self, initial: Tensor) -> Tensor:
        """S V0, (n, d)."""
        return initial if self.matrix is None else self.matrix @ initial

    def __call__(self, initial: Pair, rows: Tensor) -> tuple[Pair, RowsReached]:
        """V of the distinct `rows` (R,), and what its gradient needs."""
        if self.matrix is None:
            return (initial[0][rows], initial[1][rows]), RowsReached(rows, None)
        part = self.matrix.rows(rows)
        return (part @ initial[0], part @ initial[1]), RowsReached(*part.transposed())


@dataclass(frozen=True)
class RowsReached:
    """The rows of V0 behind the rows of a batch.

    Attributes:
        reached: (c,) rows of V0, ascending and distinct.
        transpose: (c, R), S[R, reached]'; None: the identity.
    """

    reached: Tensor
    transpose: Csr | None

    def backward(self, gradient: Tensor) -> Tensor:
        """The gradient by V0[reached] (c, d) of that by V_R (R, d)."""
        return gradient if self.transpose is None else self.transpose @ gradient


def plus_identity(similarity: sparse.csr_matrix) -> sparse.csr_matrix:
    """S = B + I of eq. 8; B is copied."""
    return (similarity + sparse.eye(similarity.shape[0], format="csr", dtype=similarity.dtype)).tocsr()
