"""Proof that B is the optimum of EASE's objective (paper, eq. 3), whichever solver it came from.

Where eq. 3 is minimal under diag B = 0, (A + lambda I) B - A is 0 off the diagonal. Cost: one pass over the Gram,
2 c additions a cell for c columns; three (n, c) arrays.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from m3rec_spark.compiled import compiled
from m3rec_spark.schema import DataError

ALL_COLUMNS = 2048  # up to here the certificate looks at every column
SAMPLED_COLUMNS = 64


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
) -> float:
    """Proof of optimality: max |(A + lambda I) B - A| off the diagonal, which is 0 at the minimum of eq. 3.

    Args:
        batches: the GRAM that B was solved from (market, item_a, item_b, count), in any order.
        solution: (n, c) columns of B.
        columns: (c,) which ones.
        lambda_f: ridge weight of eq. 3.
        market_weights: (M,) w_m of A = sum_m w_m A_m.
        tolerance: relative to the largest weighted count of a market, or lambda.

    Raises:
        DataError: the residual is not rounding error.
    """
    at = columns, np.arange(len(columns))
    target = np.array(solution)  # A B - A = A (B - I)
    residual = lambda_f * target
    target[at] -= 1.0
    largest = lambda_f
    for batch in batches:
        market, item_a, item_b, count = (batch[name].to_numpy() for name in ("market", "item_a", "item_b", "count"))
        values = count * market_weights[market]
        _add_product(item_a, item_b, values, target, residual)
        largest = max(largest, values.max(initial=0.0))
    residual[at] = 0.0
    worst = float(np.abs(residual).max(initial=0.0))
    if not worst <= tolerance * largest:  # also when worst is NaN
        raise DataError(
            f"EASE is not at its optimum: max |(A + lambda I) B - A| off the diagonal is {worst:.3g}, over "
            f"{tolerance * largest:.3g}: the system is too ill-conditioned, raise ease.lambda_f or set "
            "ease.precision=float64"
        )
    return worst


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
