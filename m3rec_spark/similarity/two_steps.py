"""Two steps of the random walk in closed form, against popularity (RP3-beta: Paudel et al. 2017, ACM TiiS 7(1)).

    P_ij = sum_u (x_ui / c_i) (x_uj / h_u) / (c_j / mean c)^beta,  i != j;   c_i users of item i, h_u items of u

From an item to one of its users, and to one of his items: the walk of eq. 5 without sampling, skip-gram and d
dimensions. Users of all markets walk; each market keeps, for each of its items j, the `neighbours` items i with the
largest P_ij. Cost: a Spark task for every market, the sum over users of h_u^2 of the items that the market sells;
memory by `task_bytes`, and the histories mapped.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import SparkSession
from scipy import sparse

from m3rec_spark.compiled import compiled
from m3rec_spark.data.arrays import MarketArrays, open_arrays
from m3rec_spark.paths import replacing
from m3rec_spark.similarity.entries import transpose
from m3rec_spark.similarity.neighbours import offer
from m3rec_spark.similarity.tasks import run_tasks


def task_bytes(arrays: MarketArrays, neighbours: int) -> int:
    """Memory of the task of the market that takes most.

    12 bytes a pair of the items that the market sells, 16 a user who has one (as many as pairs, at most), and an item's
    neighbours four times over, once they are made a matrix.
    """
    sold = np.bincount(arrays.slot_items, arrays.slot_counts, arrays.n_items)[arrays.slot_items]
    pairs = np.array([sold[arrays.market_slots(market)].sum() for market in range(arrays.n_markets)])
    users = np.minimum(pairs, arrays.n_rows)
    items = np.diff(arrays.slot_offsets)
    return int((12 * pairs + 16 * users + (40 + 72 * np.minimum(neighbours, items)) * items).max(initial=0))


def write_two_steps(
    spark: SparkSession, arrays_folder: str | Path, folder: str | Path, neighbours: int, beta: float
) -> int:
    """market-<m>.npz for every market, as `market_rows` reads them; gives the number of entries.

    Args:
        spark: the session.
        arrays_folder: of MarketArrays, on a path that all workers share, as is the other.
        folder: an existing one to fill.
        neighbours: of an item, at most.
        beta: 0: the walk; above 0 popular items are reached less.
    """
    histories, target = str(arrays_folder), str(folder)

    def solve(market: int) -> list[int]:
        found = two_steps(open_arrays(Path(histories)), market, neighbours, beta)
        with replacing(Path(target) / f"market-{market:05d}.npz") as temporary:
            with open(temporary, "wb") as file:
                sparse.save_npz(file, found)
        return [int(found.nnz)]

    markets = open_arrays(Path(histories)).n_markets
    return sum(entries for (entries,) in run_tasks(spark, markets, solve))


def two_steps(arrays: MarketArrays, market: int, neighbours: int, beta: float) -> sparse.csr_matrix:
    """P on the items of a market: (I, I) float32, zero diagonal, at most `neighbours` entries a column."""
    items = arrays.slot_items[arrays.market_slots(market)]
    place = np.full(arrays.n_items, -1, np.int32)
    place[items] = np.arange(len(items), dtype=np.int32)
    starts, bought, chance = _sold(np.asarray(arrays.indptr), np.asarray(arrays.slots), place[arrays.slot_items])
    by_item = transpose(starts, bought, len(items))
    users = np.diff(by_item.indptr).astype(np.float64)
    leave = 1.0 / np.maximum(users, 1)
    chosen, weights = _columns(
        starts, bought, by_item.indptr, by_item.users, chance, leave, min(neighbours, max(len(items) - 1, 0))
    )
    reach = (np.maximum(users, 1) / max(users.mean(), 1.0)) ** -beta if len(items) else np.ones(0)
    column, nth = np.nonzero(chosen >= 0)
    values = (weights * reach[:, None])[column, nth].astype(np.float32)
    return sparse.csr_matrix((values, (chosen[column, nth], column)), shape=(len(items), len(items)))


@compiled
def _sold(
    indptr: NDArray[np.int64], slots: NDArray[np.int32], place: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float64]]:
    """Of the users who have an item with a place: where their histories of such items start, these, and 1 / h_u."""
    users, pairs = 0, 0
    for user in range(len(indptr) - 1):
        before = pairs
        for k in range(indptr[user], indptr[user + 1]):
            pairs += place[slots[k]] >= 0
        users += pairs > before
    starts, items, chance = np.zeros(users + 1, np.int64), np.empty(pairs, np.int32), np.empty(users, np.float64)
    users, pairs = 0, 0
    for user in range(len(indptr) - 1):
        for k in range(indptr[user], indptr[user + 1]):
            if place[slots[k]] >= 0:
                items[pairs] = place[slots[k]]
                pairs += 1
        if pairs > starts[users]:
            chance[users] = 1.0 / (indptr[user + 1] - indptr[user])
            users += 1
            starts[users] = pairs
    return starts, items, chance


@compiled
def _columns(
    starts: NDArray[np.int64],
    items: NDArray[np.int32],
    item_starts: NDArray[np.int64],
    users: NDArray[np.int32],
    chance: NDArray[np.float64],
    leave: NDArray[np.float64],
    neighbours: int,
) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """(I, neighbours) items i and sum_u leave_i x_ui x_uj chance_u of column j; -1: none. Of equals, the first ones."""
    n = len(item_starts) - 1
    chosen, weights = np.full((n, neighbours), -1, np.int32), np.zeros((n, neighbours))
    sums, met = np.zeros(n), np.empty(n, np.int32)
    for j in range(n if neighbours else 0):
        count = 0
        for entry in range(item_starts[j], item_starts[j + 1]):
            user = users[entry]
            for other in range(starts[user], starts[user + 1]):
                i = items[other]
                if sums[i] == 0.0:
                    met[count] = i
                    count += 1
                sums[i] += chance[user]
        for number in range(count):
            i = met[number]
            if i != j:
                offer(chosen[j], weights[j], i, sums[i] * leave[i])
            sums[i] = 0.0
    return chosen, weights
