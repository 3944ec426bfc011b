"""A linear item model of every market's own (paper, eq. 1 and 2), in which the other markets' shoppers weigh less.

    A^(m) = w_m A_m + omega sum_{k != m} w_k A_k,  on the items that m sells;   B^(m): eq. 2 on A^(m)  (slim.py)

omega = 0 listens to the market alone, omega = 1 to all alike; several are solved, and the validation half of the market
chooses. B^(m) is not negative and sparse.
Cost: a Spark task for every market and omega, each that of slim.py on the cells of the Gram it reads; memory by
`task_bytes`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
from numpy.typing import NDArray
from pyspark.sql import SparkSession
from scipy import sparse

from m3rec_spark.data.arrays import MarketArrays, open_arrays
from m3rec_spark.paths import replacing
from m3rec_spark.similarity.gram import sparse_gram
from m3rec_spark.similarity.slim import fit_slim
from m3rec_spark.similarity.tasks import run_tasks

CELL_BYTES = 96  # of a cell read: its copies in `market_gram`, and later A, B and B' of slim.py (measured: 86 to 97)


def others_folder(folder: str | Path, number: int) -> Path:
    """Where the models of the omega with this number are: market-<m>.npz, as `market_rows` reads them."""
    return Path(folder) / f"others-{number:02d}"


def walk_folder(folder: str | Path) -> Path:
    """Where the two-step walks of the markets are, in the same files (two_steps.py)."""
    return Path(folder) / "walks"


def task_bytes(arrays: MarketArrays, cells: NDArray[np.int64], others: Sequence[float]) -> int:
    """Memory of the task that takes most: CELL_BYTES a cell that a market listens to.

    Args:
        arrays: histories and slots.
        cells: (M,) of each market's Gram. Of another's, only those between items that both sell are listened to.
        others: omegas.
    """
    sold = sparse.csr_matrix(
        (np.ones(len(arrays.slot_items), np.int64), arrays.slot_items, arrays.slot_offsets),
        (arrays.n_markets, arrays.n_items),
    )
    common = (sold @ sold.T).toarray()  # (M, M) items
    heard = np.minimum(cells[None, :], common * (common + 1) // 2)
    most = heard.sum(axis=1) if any(others) else heard.diagonal() if len(others) else np.zeros(1, np.int64)
    return CELL_BYTES * int(most.max(initial=0))


def write_market_models(
    spark: SparkSession,
    gram_folder: str | Path,
    arrays_folder: str | Path,
    folder: str | Path,
    *,
    weights: NDArray[np.float64],
    others: Sequence[float],
    l1: float,
    l2: float,
) -> tuple[int, int]:
    """B^(m) of every market for every omega; gives their entries and how many columns had not come to rest.

    Args:
        spark: the session.
        gram_folder: of the table GRAM, on a path that all workers share, as are the other folders.
        arrays_folder: of MarketArrays.
        folder: an existing one to fill.
        weights: (M,) w_m.
        others: omegas.
        l1: weight of the sum of B in eq. 2.
        l2: its ridge weight.
    """
    arrays = open_arrays(Path(arrays_folder))
    gram, histories, target, markets = str(gram_folder), str(arrays_folder), str(folder), arrays.n_markets
    for number in range(len(others)):
        others_folder(target, number).mkdir()

    def solve(task: int) -> list[int]:
        number, market = divmod(task, markets)
        given = np.where(np.arange(markets) == market, weights, others[number] * weights)
        A = market_gram(gram, open_arrays(Path(histories)), market, given)
        found, restless = fit_slim(A, l1, l2)
        with replacing(others_folder(target, number) / f"market-{market:05d}.npz") as temporary:
            with open(temporary, "wb") as file:
                sparse.save_npz(file, found)
        return [int(found.nnz), restless]

    done = run_tasks(spark, markets * len(others), solve)
    return sum(entries for entries, _ in done), sum(restless for _, restless in done)


def market_gram(gram: str, arrays: MarketArrays, market: int, weights: NDArray[np.float64]) -> sparse.csr_matrix:
    """(items of the market)^2: the sum of the markets' weighted Grams, all of it."""
    items = arrays.slot_items[arrays.market_slots(market)]
    place = np.full(arrays.n_items, -1, np.int32)
    place[items] = np.arange(len(items), dtype=np.int32)
    parts = list(_cells(gram, place, weights))
    rows, columns, counts = (np.concatenate(part) for part in zip(*parts, strict=True)) if parts else _nothing()
    return sparse_gram(rows, columns, counts, len(items))


def _cells(
    gram: str, place: NDArray[np.int32], weights: NDArray[np.float64]
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float64]]]:
    """Local rows and columns, and weighted counts, of the cells between items that have a place."""
    heard = ds.field("market").isin(np.flatnonzero(weights).tolist())
    for batch in ds.dataset(gram, format="parquet").to_batches(filter=heard, use_threads=False):
        market, item_a, item_b, count = (batch[name].to_numpy() for name in ("market", "item_a", "item_b", "count"))
        a, b = place[item_a], place[item_b]
        kept = (a >= 0) & (b >= 0)
        yield a[kept], b[kept], (weights[market] * count)[kept]


def _nothing() -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float64]]:
    return np.empty(0, np.int32), np.empty(0, np.int32), np.empty(0)
