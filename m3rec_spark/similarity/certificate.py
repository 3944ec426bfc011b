"""Proof that B is the optimum of EASE's objective (paper, eq. 3), whichever solver it came from.

Where eq. 3 is minimal under diag B = 0, R = (A + lambda I) B - A is 0 off the diagonal. What is left there bounds how
far B is from the optimum B*: without row and column j, (A + lambda I) E_j = R_j for the error E = B - B*, and no
eigenvalue of A + lambda I is below lambda, so ||E_j|| <= ||R_j|| / lambda. Where that is too coarse to tell, conjugate
gradients find E_j nearly, x with a residual r: ||E_j|| <= ||x|| + ||r|| / lambda.

Cost: one pass over the Gram, 2 c additions a cell for c columns, shared out over threads; three (n, c) arrays. With
conjugate gradients up to STEPS passes more, and six arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from m3rec_spark.compiled import compiled
from m3rec_spark.errors import DataError

ALL_COLUMNS = 2048  # up to here the certificate looks at every column
SAMPLED_COLUMNS = 64
STEPS = 60  # of conjugate gradients
_WIDTH = 16  # columns of a thread's part
Parts = list[NDArray[np.float64]]
Cells = Callable[[], Iterable[pa.RecordBatch]]


@dataclass(frozen=True)
class Proof:
    """How far B is from the optimum."""

    residual: float
    """max |(A + lambda I) B - A| off the diagonal."""
    error: float
    """No column looked at is further than this from the optimum's, in the 2-norm; nor is any of its entries."""


def certificate_columns(n_items: int) -> NDArray[np.int64]:
    """The columns that `certificate` looks at: all of them up to ALL_COLUMNS, else a fixed sample."""
    if n_items <= ALL_COLUMNS:
        return np.arange(n_items)
    return np.sort(np.random.default_rng(n_items).permutation(n_items)[:SAMPLED_COLUMNS])


def certificate(
    cells: Cells,
    solution: NDArray[np.float64],
    columns: NDArray[np.int64],
    lambda_f: float,
    market_weights: NDArray[np.float64],
    tolerance: float = 1e-9,
    error_limit: float = 1e-4,
    threads: int = 1,
) -> Proof:
    """Proof of optimality: both figures are 0 at the minimum of eq. 3.

    Args:
        cells: gives the GRAM that B was solved from (market, item_a, item_b, count), in any order, at every call.
        solution: (n, c) columns of B.
        columns: (c,) which ones.
        lambda_f: ridge weight of eq. 3.
        market_weights: (M,) w_m of A = sum_m w_m A_m.
        tolerance: of the residual, relative to the largest weighted count of a market, or lambda.
        error_limit: of the error.
        threads: that share the columns; the figures do not depend on their number.

    Raises:
        DataError: the diagonal of B is not 0, or the residual or the error is not rounding error.
    """
    if (solution[columns, np.arange(len(columns))] != 0).any():
        raise DataError("EASE is not at its optimum: the diagonal of B is not 0")
    system = _System(cells, columns, lambda_f, market_weights, threads)
    targets = system.parts(solution)
    residual = system.product(targets, minus_identity=True)
    worst = _largest(np.abs(part) for part in residual)
    if not worst <= tolerance * system.largest:  # also when worst is NaN
        raise DataError(
            f"EASE is not at its optimum: max |(A + lambda I) B - A| off the diagonal is {worst:.3g}, over "
            f"{tolerance * system.largest:.3g}: {_ADVICE}"
        )
    error = _largest_norm(residual) / lambda_f
    if error > error_limit:
        error = _refined(system, residual, error_limit)
    if not error <= error_limit:
        raise DataError(
            f"EASE is not at its optimum: entries of B may be off by {error:.3g}, over {error_limit:g}: {_ADVICE}"
        )
    return Proof(worst, error)


_ADVICE = "the system is too ill-conditioned, raise ease.lambda_f or set ease.precision=float64"


class _System:
    """A + lambda I without row and column j, for all columns j looked at, in parts of _WIDTH columns."""

    def __init__(
        self,
        cells: Cells,
        columns: NDArray[np.int64],
        lambda_f: float,
        market_weights: NDArray[np.float64],
        threads: int,
    ) -> None:
        self.cells, self.lambda_f, self.market_weights, self.threads = cells, lambda_f, market_weights, threads
        self.columns = [columns[start : start + _WIDTH] for start in range(0, len(columns), _WIDTH)]
        self.largest = lambda_f
        """The largest weighted count of a market, or lambda; known after the first product."""

    def parts(self, array: NDArray[np.float64]) -> Parts:
        """Copies of an (n, c) array's columns."""
        return [np.array(array[:, at : at + _WIDTH], order="C") for at in range(0, array.shape[1], _WIDTH)]

    def product(self, vectors: Parts, minus_identity: bool = False) -> Parts:
        """(A + lambda I) vectors, its rows j set to 0; minus A's columns j too, if so wished."""
        result = [self.lambda_f * part for part in vectors]
        if minus_identity:  # A B - A = A (B - I)
            vectors = [part.copy() for part in vectors]
            for part, own in zip(vectors, self.columns, strict=True):
                part[own, np.arange(len(own))] -= 1.0
        with ThreadPoolExecutor(self.threads) as pool:
            for item_a, item_b, values in self._weighted_cells():
                self.largest = max(self.largest, float(values.max(initial=0.0)))
                added = [
                    pool.submit(_add_product, item_a, item_b, values, part, into)
                    for part, into in zip(vectors, result, strict=True)
                ]
                for one in added:
                    one.result()
        for part, own in zip(result, self.columns, strict=True):
            part[own, np.arange(len(own))] = 0.0
        return result

    def diagonal(self, n_items: int) -> NDArray[np.float64]:
        """(n,) of A + lambda I."""
        found = np.full(n_items, self.lambda_f)
        for item_a, item_b, values in self._weighted_cells():
            own = item_a == item_b
            np.add.at(found, item_a[own], values[own])
        return found

    def _weighted_cells(self) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float64]]]:
        for batch in self.cells():
            market, item_a, item_b, count = (batch[name].to_numpy() for name in ("market", "item_a", "item_b", "count"))
            yield item_a, item_b, count * self.market_weights[market]


def _refined(system: _System, residual: Parts, limit: float) -> float:
    """A bound of the error by preconditioned conjugate gradients, until it tells on which side of the limit it is."""
    scale = 1.0 / system.diagonal(len(residual[0]))[:, None]
    left = [part.copy() for part in residual]
    error = [np.zeros_like(part) for part in residual]
    direction = [scale * part for part in left]
    product = [(part * step).sum(axis=0) for part, step in zip(left, direction, strict=True)]
    bound = np.inf
    for _ in range(STEPS):
        moved = system.product(direction)
        for k, step in enumerate(direction):
            curvature = (step * moved[k]).sum(axis=0)
            length = np.divide(product[k], curvature, out=np.zeros_like(curvature), where=curvature > 0)
            error[k] += length * step
            left[k] -= length * moved[k]
            scaled = scale * left[k]
            new = (left[k] * scaled).sum(axis=0)
            direction[k] = scaled + np.divide(new, product[k], out=np.zeros_like(new), where=product[k] > 0) * step
            product[k] = new
        norms = [np.linalg.norm(part, axis=0) for part in error]
        rest = [np.linalg.norm(part, axis=0) / system.lambda_f for part in left]
        bound = min(bound, _largest(a + b for a, b in zip(norms, rest, strict=True)))
        if bound <= limit or _largest(a - b for a, b in zip(norms, rest, strict=True)) > limit:
            break
    return bound


def _largest_norm(parts: Parts) -> float:
    return _largest(np.linalg.norm(part, axis=0) for part in parts)


def _largest(parts: Iterable[NDArray[np.float64]]) -> float:
    """NaN if any is: Python's max would lose one behind a number."""
    return float(np.max([part.max(initial=0.0) for part in parts], initial=0.0))


@compiled
def _add_product(
    item_a: NDArray[np.int32],
    item_b: NDArray[np.int32],
    values: NDArray[np.float64],
    target: NDArray[np.float64],
    residual: NDArray[np.float64],
) -> None:
    """Adds A target to residual; A is symmetric and given by its upper cells."""
    for cell in range(len(values)):
        a, b, value = item_a[cell], item_b[cell], values[cell]
        for column in range(target.shape[1]):
            residual[a, column] += value * target[b, column]
        if a != b:
            for column in range(target.shape[1]):
                residual[b, column] += value * target[a, column]
