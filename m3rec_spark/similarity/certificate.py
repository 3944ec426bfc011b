"""Proof that B is the optimum of EASE's objective (paper, eq. 3), whichever solver it came from.

Where eq. 3 is minimal under diag B = 0, R = (A + lambda I) B - A is 0 off the diagonal. What is left there bounds how
far B is from the optimum B*: without row and column j, (A + lambda I) (B - B*)_j = R_j, and no eigenvalue of
A + lambda I is below lambda, so ||(B - B*)_j|| <= ||R_j|| / lambda.

Cost: one pass over the Gram, 2 c additions a cell for c columns, the columns shared out over threads; three (n, c)
arrays.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from m3rec_spark.compiled import compiled
from m3rec_spark.errors import DataError

ALL_COLUMNS = 2048  # up to here the certificate looks at every column
SAMPLED_COLUMNS = 64
_WIDTH = 16  # columns of a thread's part


@dataclass(frozen=True)
class Proof:
    """How far B is from the optimum."""

    residual: float
    """max |(A + lambda I) B - A| off the diagonal."""
    error: float
    """No column of B is further than this from the optimum's, in the 2-norm: no entry is off by more."""


def certificate_columns(n_items: int) -> NDArray[np.int64]:
    """The columns that `certificate` looks at: all of them up to ALL_COLUMNS, else a fixed sample."""
    if n_items <= ALL_COLUMNS:
        return np.arange(n_items)
    return np.sort(np.random.default_rng(n_items).permutation(n_items)[:SAMPLED_COLUMNS])


def certificate(
    batches: Iterable[pa.RecordBatch],
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
        batches: the GRAM that B was solved from (market, item_a, item_b, count), in any order.
        solution: (n, c) columns of B.
        columns: (c,) which ones.
        lambda_f: ridge weight of eq. 3.
        market_weights: (M,) w_m of A = sum_m w_m A_m.
        tolerance: of the residual, relative to the largest weighted count of a market, or lambda.
        error_limit: of the error.
        threads: that share the columns; the figures do not depend on their number.

    Raises:
        DataError: the residual or the error is not rounding error.
    """
    starts = range(0, len(columns), _WIDTH)
    residual, largest = _residual(batches, solution, columns, starts, lambda_f, market_weights, threads)
    for start, part in zip(starts, residual, strict=True):
        own = columns[start : start + _WIDTH]
        part[own, np.arange(len(own))] = 0.0
    worst = max((float(np.abs(part).max(initial=0.0)) for part in residual), default=0.0)
    error = max((float(np.linalg.norm(part, axis=0).max(initial=0.0)) for part in residual), default=0.0) / lambda_f
    advice = "the system is too ill-conditioned, raise ease.lambda_f or set ease.precision=float64"
    if not worst <= tolerance * largest:  # also when worst is NaN
        raise DataError(
            f"EASE is not at its optimum: max |(A + lambda I) B - A| off the diagonal is {worst:.3g}, over "
            f"{tolerance * largest:.3g}: {advice}"
        )
    if error > error_limit:
        raise DataError(
            f"EASE is not at its optimum: entries of B may be off by {error:.3g} (the residual by lambda, "
            f"{lambda_f:g}), over {error_limit:g}: {advice}"
        )
    return Proof(worst, error)


def _residual(
    batches: Iterable[pa.RecordBatch],
    solution: NDArray[np.float64],
    columns: NDArray[np.int64],
    starts: range,
    lambda_f: float,
    market_weights: NDArray[np.float64],
    threads: int,
) -> tuple[list[NDArray[np.float64]], float]:
    """(A + lambda I) B - A in parts of _WIDTH columns; and the largest weighted count, or lambda."""
    targets = [np.array(solution[:, start : start + _WIDTH], order="C") for start in starts]
    residual = [lambda_f * target for target in targets]
    for start, target in zip(starts, targets, strict=True):  # A B - A = A (B - I)
        own = columns[start : start + _WIDTH]
        target[own, np.arange(len(own))] -= 1.0
    largest = lambda_f
    with ThreadPoolExecutor(threads) as pool:
        for batch in batches:
            market, item_a, item_b, count = (batch[name].to_numpy() for name in ("market", "item_a", "item_b", "count"))
            values = count * market_weights[market]
            largest = max(largest, float(values.max(initial=0.0)))
            done = [
                pool.submit(_add_product, item_a, item_b, values, target, part)
                for target, part in zip(targets, residual, strict=True)
            ]
            for one in done:
                one.result()
    return residual, largest


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
