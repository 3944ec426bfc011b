"""Intra-market item similarity: EASE^R by elimination of the markets on Spark (paper, eq. 3, 4), exact.

Users belong to one market each, so the items S_m that market m alone sells never meet those of another market: only the
shared items O couple the markets. With G_m = A[S_m, S_m] + lambda I and E_m = A[S_m, O], for every market in a task:
    1.  G_m = L L',  Y = L^-1 E_m,  F_m = L^-T Y = G_m^-1 E_m,  G_m^-1,  and what m adds to the border, A_m[O, O] - Y'Y;
    2.  C_OO = (sum of those + lambda I)^-1 on the driver: the inverse of the Schur complement of all S_m;
    3.  H_m = C_OO F_m' and C_mm = G_m^-1 + F_m H_m, which give all of C = (A + lambda I)^-1 (market_blocks.py).
Where that is cheaper, step 1 inverts the side of a market's few users, X = sqrt(w_m) [X_S X_O], instead (ease.py):
    P = X' (X_S X_S' + lambda I)^-1 X;    G_m^-1 = (I - P_SS) / lambda,    F_m = P_SO,    and to the border lambda P_OO.

Cost: sum_m (s_m^3 + 3 s_m^2 o_m + s_m o_m^2 + 2 s_m o_m o) + o^3 flops, against (o + sum_m s_m)^3; two Spark jobs with
a task a market, nothing shuffled. Numbers held by a task: s_m^2 + s_m o_m + o_m^2, then o s_m + max(o o_m, s_m^2); by
the driver: o^2; on disk: o^2 + sum_m (2 s_m^2 + s_m o_m + s_m o + o_m^2).

Notation: s_m = |S_m|; o = |O|; o_m items of O that market m sells: only those columns of E_m and F_m are kept.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray
from pyspark.sql import SparkSession
from scipy import sparse
from scipy.linalg import blas

from m3rec_spark.compiled import compiled
from m3rec_spark.data.arrays import MarketArrays, open_arrays
from m3rec_spark.errors import DataError, UsageError
from m3rec_spark.similarity import ease
from m3rec_spark.similarity.dense import Matrix, mirror, product
from m3rec_spark.similarity.market_blocks import SHARED, EliminatedWeights, Store, place, split_items
from m3rec_spark.similarity.tasks import forget_zip_importers, one_task_blas

log = logging.getLogger(__name__)

_USER_FLOPS = 3000.0  # dense flops in the time of a user's 15 pairs or so, a number of a sparse product: as measured


@dataclass(frozen=True)
class Cost:
    """Of a market: its flops, the most bytes that one of its tasks holds, whether step 1 is cheaper from its users."""

    flops: float
    task_bytes: int
    by_users: bool


def market_cost(own: int, sold: int, shared: int, users: int, task_bytes: int | None = None) -> Cost:
    """The cost of a market with s_m, o_m, o; by its users where that is cheaper and fits.

    users: 0 where step 1 must not start from them. task_bytes: what a task may take; None: there is no limit.
    """
    by_items = own**3 + 2 * own**2 * sold + own * sold**2
    by_users = users**3 + _USER_FLOPS * users * (users + own + sold)
    held, step_3 = own * (own + sold) + sold**2, 2 * own * sold * shared + own**2 * sold
    of_users = (own + sold) ** 2 + users * (users + 2 * (own + sold))
    fits = task_bytes is None or 8 * (held + of_users) <= task_bytes
    cheaper = users > 0 and by_users < by_items and fits
    held += of_users if cheaper else 0
    step_3_held = shared * own + max(shared * sold, own**2)
    return Cost((by_users if cheaper else by_items) + step_3, 8 * max(held, step_3_held), cheaper)


def eliminate(
    spark: SparkSession,
    gram_folder: str | Path,
    arrays_folder: str | Path,
    folder: str | Path,
    lambda_f: float,
    weights: NDArray[np.float64],
    whole_histories: bool = True,
    task_bytes: int | None = None,
) -> EliminatedWeights:
    """B of eq. 4 from the Gram.

    Args:
        spark: the session.
        gram_folder: of the table GRAM, on a path that all workers share, as are the other folders.
        arrays_folder: of MarketArrays.
        folder: an empty one for the blocks, kept as long as the result is in use.
        lambda_f: ridge weight of eq. 3, > 0.
        weights: (M,) w_m of A = sum_m w_m A_m.
        whole_histories: whether the Gram counts all that the arrays hold (no gram.max_history), so that a market can
            be solved from its users.
        task_bytes: what a task may take; None: there is no limit.

    Raises:
        UsageError: lambda_f or a weight cannot be used.
        DataError: the Gram does not fit the arrays, or A + lambda I is not positive definite; names the item.
    """
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        raise UsageError(f"the weights of the markets' Grams must be positive and finite, got {weights.tolist()}")
    store, arrays = Store(str(folder)), open_arrays(Path(arrays_folder))
    costs = _lay_out(store, arrays, whole_histories, task_bytes)
    log.info("EASE by market: %d of them from their users", sum(cost.by_users for cost in costs))
    order = sorted(range(arrays.n_markets), key=lambda market: -costs[market].flops)  # the longest tasks first
    elimination = _Elimination(store, str(gram_folder), str(arrays_folder), lambda_f, weights, tuple(costs))
    _in_tasks(spark, order, elimination.factor)
    elimination.solve_border()
    _in_tasks(spark, order, elimination.respond)
    elimination.finish()
    return EliminatedWeights(store, arrays.n_items)


def _lay_out(store: Store, arrays: MarketArrays, whole_histories: bool, task_bytes: int | None) -> list[Cost]:
    """Saves who owns the items and what the markets sell; gives the markets' costs."""
    split, costs = split_items(arrays), []
    store.save_split(split)
    for market in range(arrays.n_markets):
        slots = arrays.market_slots(market)
        items = arrays.slot_items[slots][arrays.slot_counts[slots] > 0]
        sold = split.place[items[split.owner[items] == SHARED]]
        store.save_of_market(market, "sold", sold.astype(np.int64))
        users = int(np.diff(arrays.user_offsets[market : market + 2])[0]) if whole_histories else 0
        sizes = len(split.items(market)), len(sold), len(split.items(SHARED))
        costs.append(market_cost(*sizes, users, task_bytes))
    return costs


def _in_tasks(spark: SparkSession, markets: Sequence[int], kernel: Callable[[int], None]) -> None:
    """Runs a kernel on every market, a task each, in their order. A DataError comes back as one."""

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for index in batch["id"].to_pylist():
                try:
                    with one_task_blas():
                        kernel(markets[index])
                except DataError as error:
                    yield pa.RecordBatch.from_pydict({"problem": [f"market {markets[index]}: {error}"]})
        forget_zip_importers()

    tasks = spark.range(0, len(markets), numPartitions=len(markets))
    if problems := tasks.mapInArrow(run, "problem string").collect():
        raise DataError(min(row["problem"] for row in problems))


@dataclass(frozen=True)
class _Elimination:
    """The steps. Files of a market that only they need: `inverse` G_m^-1, `border`, `diagonal` of C_mm."""

    store: Store
    gram: str
    arrays: str
    lambda_f: float
    weights: NDArray[np.float64]
    costs: tuple[Cost, ...]

    def factor(self, market: int) -> None:
        """Step 1: F_m, G_m^-1 and the border's part, A_m[O, O] - E_m' F_m (lower half)."""
        own, sold = self.store.split().items(market), self.store.of_market(market, "sold")
        shared = self.store.split().items(SHARED)[sold]
        blocks = self._from_users if self.costs[market].by_users else self._from_gram
        inverse, factor, border = blocks(market, own, shared)
        for name, array in {"inverse": mirror(inverse), "factor": factor, "border": border}.items():
            self.store.save_of_market(market, name, array)

    def _from_gram(self, market: int, own: NDArray[np.int64], shared: NDArray[np.int64]) -> tuple[Matrix, ...]:
        s, o = len(own), len(shared)
        place = np.full(len(self.store.split().owner), -1, np.int32)
        place[own], place[shared] = np.arange(s), s + np.arange(o)
        G, E, border = (np.zeros(shape, order="F") for shape in ((s, s), (s, o), (o, o)))
        cells = ds.dataset(self.gram, format="parquet")
        for batch in cells.to_batches(filter=ds.field("market") == market, use_threads=False):
            item_a, item_b, count = (batch[name].to_numpy() for name in ("item_a", "item_b", "count"))
            if not _fill(item_a, item_b, count, self.weights[market], place, G, E, border):
                raise DataError("the Gram has items that no user of the market bought: run pretrain again with --force")
        if not s:
            return G, E, border
        L = ease.cholesky(G, self.lambda_f, own)
        if o:
            E = blas.dtrsm(1.0, L, E, lower=1, overwrite_b=1)
            border = blas.dsyrk(-1.0, E, beta=1.0, c=border, trans=1, lower=1, overwrite_c=1)
            E = blas.dtrsm(1.0, L, E, lower=1, trans_a=1, overwrite_b=1)
        return ease.invert_factor(L), E, border

    def _from_users(self, market: int, own: NDArray[np.int64], shared: NDArray[np.int64]) -> tuple[Matrix, ...]:
        arrays, s = open_arrays(Path(self.arrays)), len(own)
        local = np.searchsorted(arrays.slot_items[arrays.market_slots(market)], np.concatenate([own, shared]))
        X = sparse.csr_matrix(arrays.history(market)[:, local], dtype=np.float64) * np.sqrt(self.weights[market])
        P = ease.users_projection(X, s, self.lambda_f)
        inverse = -P[:s, :s] / self.lambda_f
        inverse[np.diag_indices(s)] += 1.0 / self.lambda_f
        return inverse.T, np.asfortranarray(P[:s, s:]), np.asfortranarray(self.lambda_f * P[s:, s:])

    def solve_border(self) -> None:
        """Step 2: C_OO."""
        shared = self.store.split().items(SHARED)
        S = np.zeros((len(shared), len(shared)), order="F")
        for market in range(len(self.costs)):
            sold, border = self.store.of_market(market, "sold"), self.store.of_market(market, "border")
            places = np.arange(len(sold))
            place(S, sold, sold, border, places, places, 1.0)
        if len(S):
            S = mirror(ease.invert_factor(ease.cholesky(S, self.lambda_f, shared)))
        self.store.save("shared", S)

    def respond(self, market: int) -> None:
        """Step 3: H_m, C_mm and its diagonal."""
        sold, F = self.store.of_market(market, "sold"), self.store.of_market(market, "factor")
        C = self.store.open("shared")
        H = product(C if len(sold) == len(C) else C[sold].T, F.T)  # C_OO is symmetric
        own = self.store.of_market(market, "inverse").copy(order="F")
        for start in range(0, len(F), ease.BLOCK):  # the lower half
            columns = slice(start, start + ease.BLOCK)
            H_m = H[:, columns] if len(sold) == len(C) else H[sold, columns]
            own[start:, columns] += product(F[start:], H_m)
        self.store.save_of_market(market, "response", H)
        self.store.save_of_market(market, "own", mirror(own))
        self.store.save_of_market(market, "diagonal", np.diagonal(own))

    def finish(self) -> None:
        """The diagonal of C for all items; removes what is needed no more."""
        split = self.store.split()
        diagonal = np.full(len(split.owner), 1 / self.lambda_f)  # of items that nobody bought
        diagonal[split.items(SHARED)] = np.diagonal(self.store.open("shared"))
        for market in range(len(self.costs)):
            diagonal[split.items(market)] = self.store.of_market(market, "diagonal")
            self.store.remove_of_market(market, "inverse", "border", "diagonal")
        self.store.save("diagonal", diagonal)


@compiled
def _fill(
    item_a: NDArray[np.int32],
    item_b: NDArray[np.int32],
    count: NDArray[np.int32],
    weight: float,
    place: NDArray[np.int32],
    G: NDArray[np.float64],
    E: NDArray[np.float64],
    border: NDArray[np.float64],
) -> bool:
    """Weighted cells into the lower halves of G and border, and into E; false where an item has no place.

    place: (n,) row of G, len(G) + row of border, or -1.
    """
    s = len(G)
    for cell in range(len(count)):
        low, high = place[item_a[cell]], place[item_b[cell]]
        if low > high:
            low, high = high, low
        if low < 0:
            return False
        if high < s:
            G[high, low] = weight * count[cell]
        elif low < s:
            E[low, high - s] = weight * count[cell]
        else:
            border[high - s, low - s] = weight * count[cell]
    return True
