"""Intra-market item similarity: EASE^R in closed form (paper, eq. 3, 4; Steck 2019, arXiv:1905.03375).

B = I - C diagMat(1 / diag C),  C = (A + lambda I)^-1,  so that diag B = 0.
Cost: n^3 flops (Cholesky n^3/3, inverse from it 2 n^3/3) and one n x n array, in place from A to B. Where a market
has fewer users than items, `markets` takes C from their side (Woodbury's identity for A = X'X), u^3 flops and two
sparse products:
    C = (I - X' (X X' + lambda I)^-1 X) / lambda.

Notation: n items; u users; X (u, n) histories; A (n, n) co-occurrence counts; B (n, n) weights, row = item in the
history, column = item scored.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.linalg import get_lapack_funcs

from m3rec_spark.errors import CapacityError, DataError, UsageError
from m3rec_spark.similarity.capacity import require
from m3rec_spark.similarity.dense import Real, mirror

BLOCK = 512  # rows worked on at once: the extra memory is a few BLOCK x n
LAPACK_ITEMS = 4096  # up to here LAPACK does it; beyond, it is as fast by blocks, and safe (blocked.py)


def bytes_needed(n_items: int, itemsize: int = 8) -> int:
    """Peak memory of `solve`: one n x n array of numbers of itemsize bytes, and a few blocks of rows."""
    return itemsize * n_items**2 + 4 * itemsize * BLOCK * n_items


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


def solve(gram: NDArray[Real], lambda_f: float) -> NDArray[Real]:
    """B of eq. 4, in the memory of `gram`, which is lost.

    Args:
        gram: (n, n) A in Fortran order, only its lower half is read. float32 takes half the memory and time of
            float64; how far that leads from the optimum is what `certificate` measures.
        lambda_f: ridge weight, > 0.

    Returns:
        (n, n) B in C order with diagonal exactly 0: the same memory.

    Raises:
        UsageError: lambda_f is not positive.
        DataError: A holds NaN or infinity, or A + lambda I is not positive definite; names the item.
    """
    return _weights(invert(gram, lambda_f))


def solve_on_gpu(gram: NDArray[Real], lambda_f: float, device: str = "cuda") -> NDArray[Real]:
    """As `solve`, by torch on the GPU; the result takes the memory of `gram` on the host.

    Raises:
        UsageError: torch sees no such device, or lambda_f is not positive.
        CapacityError: an n x n array and a few panels do not fit on it.
        DataError: as `solve`.
    """
    _check(gram, lambda_f)
    _require_device(bytes_needed(len(gram), gram.itemsize), device)
    square = _tensor(gram).to(device, copy=True)
    square.diagonal().add_(lambda_f)
    _refuse_minor(_blocked().factor_in_place(square, BLOCK), lambda_f)
    _blocked().invert_factor_in_place(square, BLOCK)
    _tensor(gram).copy_(square)
    return _weights(gram)


def invert(gram: NDArray[Real], ridge: float) -> NDArray[Real]:
    """(A + ridge I)^-1 in the memory of A; of both, the lower half is meant. Raises as `solve`."""
    return invert_factor(cholesky(gram, ridge))


def cholesky(gram: NDArray[Real], ridge: float, items: NDArray[Any] | None = None) -> NDArray[Real]:
    """L of A + ridge I = L L' in the lower half of A's memory. items: of the rows, in messages. Raises as `solve`."""
    _check(gram, ridge, items)
    gram[np.diag_indices(len(gram))] += ridge
    if len(gram) > LAPACK_ITEMS:
        factor, minor = gram, _blocked().factor_in_place(_tensor(gram), BLOCK)
    else:
        factor, minor = get_lapack_funcs("potrf", (gram,))(gram, lower=1, clean=0, overwrite_a=1)
    _refuse_minor(minor, ridge, items)
    return factor


def invert_factor(factor: NDArray[Real]) -> NDArray[Real]:
    """(L L')^-1 in the memory of L: the lower half."""
    if len(factor) > LAPACK_ITEMS:
        _blocked().invert_factor_in_place(_tensor(factor), BLOCK)
        return factor
    return cast(NDArray[Real], get_lapack_funcs("potri", (factor,))(factor, lower=1, overwrite_c=1)[0])


def users_projection(X: sparse.csr_matrix, n_own: int, ridge: float) -> NDArray[Any]:
    """P = X' (S S' + ridge I)^-1 X (n, n), S the first n_own columns of X: (S'S + ridge I)^-1 = (I - P_SS) / ridge.

    Raises:
        UsageError: ridge is not positive.
    """
    own = X[:, :n_own]
    inverse = mirror(invert((own @ own.T).toarray(order="F"), ridge))
    half = X.T @ inverse
    return cast(NDArray[Any], X.T @ half.T)


def _weights(inverse: NDArray[Real]) -> NDArray[Real]:
    """B from the lower half of C in Fortran order, in its memory: C is symmetric, so its transpose has B's rows."""
    weights = mirror(inverse).T
    scale = -1.0 / np.diagonal(weights)
    for rows in _blocks(len(weights)):
        weights[rows] *= scale
    weights[np.diag_indices(len(weights))] = 0.0
    return weights


def _check(gram: NDArray[Any], ridge: float, items: NDArray[Any] | None = None) -> None:
    if not 0 < ridge < np.inf:
        raise UsageError(f"lambda_f must be > 0 so that X'X + lambda_f I is positive definite, got {ridge}")
    n = len(gram)
    if gram.shape != (n, n) or gram.dtype not in (np.float64, np.float32) or not gram.flags.f_contiguous:
        raise ValueError(f"gram must be square, float64 or float32, in Fortran order, got {gram.dtype} {gram.shape}")
    for columns in _blocks(n):  # LAPACK may carry a NaN through to a partly NaN inverse without a word
        bad = ~np.isfinite(gram[:, columns]).all(axis=0)
        if bad.any():
            item = _item(columns.start + int(bad.argmax()), items)
            raise DataError(f"the Gram holds NaN or infinity in the column of item {item}")


def _refuse_minor(minor: int, ridge: float, items: NDArray[Any] | None = None) -> None:
    if minor:
        raise DataError(
            f"X'X + {ridge} I is not positive definite: its leading minor of order {minor} fails, at item "
            f"{_item(minor - 1, items)}. Counts of distinct pairs cannot do that: rebuild the Gram, or raise "
            "ease.lambda_f"
        )


def _item(row: int, items: NDArray[Any] | None) -> int:
    return row if items is None else int(items[row])


def _require_device(needed: int, device: str) -> None:
    import torch

    if torch.device(device).type != "cuda":
        return
    if not torch.cuda.is_available():
        raise UsageError(f"ease.solver=cuda, but torch sees no GPU ({device}): set ease.solver=auto or driver")
    free, _ = torch.cuda.mem_get_info(device)
    if needed > free:
        raise CapacityError(
            f"EASE on {device} needs {needed:,} bytes of GPU memory ({needed / 1e9:.3g} GB), {free:,} are free: "
            "set ease.precision=float32, or ease.solver=auto for a solver that fits"
        )


def _blocked() -> ModuleType:
    """The products by torch, whose import takes 2 s that Spark's tasks with their small markets do without."""
    from m3rec_spark.similarity import blocked

    return blocked


def _tensor(array: NDArray[Any]) -> Any:
    """The array as a tensor, in the same memory."""
    import torch

    return torch.from_numpy(array)


def _blocks(n: int) -> Iterator[slice]:
    for start in range(0, n, BLOCK):
        yield slice(start, min(start + BLOCK, n))
