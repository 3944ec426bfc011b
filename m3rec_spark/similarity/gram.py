"""Co-occurrence counts A = X'X over all markets (paper, Sec. 2.3), exact integers on any partitioning.

Users belong to one market each, so A is the sum of one Gram a market, and a market's is the sum over chunks of its
users. A chunk costs the sum of its squared history lengths; only the upper half of a chunk's product leaves its task.

Notation: X_p users of a chunk x items, 0/1. Cell (a, b), a <= b: users who have both; (a, a): users of a.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema
from scipy import sparse

from m3rec_spark.schema import GRAM

_INT32_MAX = 2**31 - 1
_CELL = ["market", "tile_row", "tile_col", "item_a", "item_b"]

Cells = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]


def upper_gram(users: NDArray[np.int32], items: NDArray[np.int32]) -> Cells:
    """Upper half of X'X of the distinct pairs (users[k], items[k]).

    Returns:
        item_a, item_b, count (int32, one entry a non-zero cell, item_a <= item_b, in that order).
    """
    user_ids, row = np.unique(users, return_inverse=True)
    item_ids, column = np.unique(items, return_inverse=True)  # ascending: column order is item order
    X = sparse.csr_matrix((np.ones(len(row), np.int32), (row, column)), shape=(len(user_ids), len(item_ids)))
    half = sparse.triu((X.T @ X).tocsr(), format="csr")
    half.sort_indices()
    cells = half.tocoo()
    return item_ids[cells.row], item_ids[cells.col], cells.data.astype(np.int32)


def pack_users(pairs: DataFrame, pairs_per_task: int) -> DataFrame:
    """Adds `chunk` to (market, user, item): all of a user in one, of about pairs_per_task squared history lengths."""
    lengths = pairs.groupBy("market", "user").agg(F.count("*").alias("length"))
    chunks = lengths.groupBy("market").agg(F.ceil(F.sum(F.col("length") ** 2) / pairs_per_task).alias("chunks"))
    return pairs.join(F.broadcast(chunks), "market").select(
        *pairs.columns, F.pmod(F.xxhash64("user"), F.col("chunks")).alias("chunk")
    )


def gram_by_market(interactions: DataFrame, tile: int, pairs_per_task: int) -> DataFrame:
    """(market, user, item) of distinct train pairs -> GRAM, sorted within tiles.

    Args:
        interactions: distinct pairs; further columns are ignored.
        tile: items on the side of a tile.
        pairs_per_task: the sum of squared history lengths that one task is given, about.
    """
    chunks = pack_users(interactions.select("market", "user", "item"), pairs_per_task)

    def count(group: pa.Table) -> pa.Table:
        item_a, item_b, counts = upper_gram(group["user"].to_numpy(), group["item"].to_numpy())
        market = np.full(len(counts), group["market"][0].as_py(), np.int32)
        columns = [market, item_a // tile, item_b // tile, item_a, item_b, counts]
        return pa.Table.from_arrays([pa.array(c, pa.int32()) for c in columns], schema=to_arrow_schema(GRAM))

    cells = chunks.groupBy("market", "chunk").applyInArrow(count, GRAM).repartition("market", "tile_row", "tile_col")
    total = F.sum("count")  # a long; a chunk's own counts fit because its users do
    exact = F.when(total <= _INT32_MAX, total).otherwise(
        F.raise_error(F.lit("a Gram cell exceeds int32: an item pair has over 2^31 - 1 users in a market"))
    )
    merged = cells.groupBy(*_CELL).agg(exact.cast("int").alias("count"))
    return merged.sortWithinPartitions(*_CELL).select(*GRAM.fieldNames())


def dense_gram(batches: Iterable[pa.RecordBatch], n_items: int) -> NDArray[np.float64]:
    """A as a dense matrix, summed over markets: exact, as counts stay below 2^53.

    Args:
        batches: of GRAM's item_a, item_b, count, in any order.
        n_items: n.

    Returns:
        (n, n) float64 in Fortran order with the lower half filled: what `ease.solve` takes.
    """
    gram = np.zeros((n_items, n_items), order="F")
    cells = gram.reshape(-1, order="F")  # a view: cell (b, a) of the lower half lies at a * n + b
    for batch in batches:
        item_a, item_b = batch["item_a"].to_numpy(), batch["item_b"].to_numpy()
        np.add.at(cells, item_a.astype(np.int64) * n_items + item_b, batch["count"].to_numpy())
    return gram
