"""Two steps of the random walk in closed form, against popularity (RP3-beta: Paudel et al. 2017, ACM TiiS 7(1)).

    P_ij = sum_u (x_ui / c_i) (x_uj / h_u) / (c_j / mean c)^beta,  i != j;   c_i users of item i, h_u items of u

From an item to one of its users, and to one of his items: the walk of eq. 5 without sampling, skip-gram and d
dimensions. Users of all markets walk; each market keeps, for each of its items j, the `neighbours` items i with the
largest P_ij. Cost: a Spark task for every market, the sum over users of h_u^2 of the items that the market sells; 16
bytes a pair and 12 bytes times `neighbours` an item.
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
from m3rec_spark.similarity.neighbours import offer
from m3rec_spark.similarity.tasks import run_tasks


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
    local = place[arrays.items]
    ends = np.concatenate([[0], np.cumsum(local >= 0)])[arrays.indptr]  # of the users' items that the market sells
    by_user = sparse.csr_matrix((np.ones(ends[-1], np.int8), local[local >= 0], ends), (arrays.n_rows, len(items)))
    by_item = by_user.tocsc()
    users = np.diff(by_item.indptr).astype(np.float64)
    chance = 1.0 / np.maximum(np.diff(arrays.indptr), 1)
    leave = 1.0 / np.maximum(users, 1)
    chosen, weights = _columns(
        by_user.indptr, by_user.indices, by_item.indptr, by_item.indices, chance, leave,
        min(neighbours, max(len(items) - 1, 0)),
    )  # fmt: skip
    reach = (np.maximum(users, 1) / max(users.mean(), 1.0)) ** -beta if len(items) else np.ones(0)
    column, nth = np.nonzero(chosen >= 0)
    values = (weights * reach[:, None])[column, nth].astype(np.float32)
    return sparse.csr_matrix((values, (chosen[column, nth], column)), shape=(len(items), len(items)))


@compiled
def _columns(
    starts: NDArray[np.int32],
    items: NDArray[np.int32],
    item_starts: NDArray[np.int32],
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
