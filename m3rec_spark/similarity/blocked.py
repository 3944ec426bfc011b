"""Cholesky and the inverse of a large matrix in place, by products of its blocks: where LAPACK is not to be trusted.

A = L L', R = L^-1, A^-1 = R'R, each a third of n^3 flops and nearly all of them in products with a long inner side, on
any torch device. OpenBLAS's own Cholesky overruns its buffer on large matrices and kills the process (SciPy 1.15 with
OpenBLAS 0.3.28, AVX-512, two threads, n = 16,000; OpenMathLib/OpenBLAS#2562). No explicit inverse of A's blocks is
used: elimination by D^-1 instead of by the factor of D loses as many digits again as the condition number has.

Memory beside the matrix: three n x block panels. Notation: p the rows of a pivot block, first to last.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def factor_in_place(A: Tensor, block: int) -> int:
    """L over the lower half of A (n, n), any strides; gives the order of the leading minor that fails, or 0."""
    for first, last in _blocks(len(A), block):
        if first:
            A[first:, first:last].addmm_(A[first:, :first], A[first:last, :first].T, alpha=-1)
        L, minor = torch.linalg.cholesky_ex(A[first:last, first:last])
        if int(minor):
            return first + int(minor)
        A[first:last, first:last] = L
        if last < len(A):
            below = torch.linalg.solve_triangular(L.T, A[last:, first:last], upper=True, left=False)
            A[last:, first:last] = below
    return 0


def invert_factor_in_place(L: Tensor, block: int) -> None:
    """(L L')^-1 over L: the lower half."""
    for first, last in _blocks(len(L), block):  # R = L^-1, a row of blocks after the other
        one = torch.eye(last - first, dtype=L.dtype, device=L.device)
        R = torch.linalg.solve_triangular(L[first:last, first:last].tril(), one, upper=False)
        for low, high in _blocks(first, block):
            product = L[first:last, low:first] @ L[low:first, low:high]
            L[first:last, low:high] = -(R @ product)
        L[first:last, first:last] = R
    for first, last in _blocks(len(L), block):  # R'R: a row needs only itself and those below
        L[first:last, :last] = L[first:, first:last].T @ L[first:, :last]


def _blocks(n: int, block: int) -> Iterator[tuple[int, int]]:
    for first in range(0, n, block):
        yield first, min(first + block, n)
