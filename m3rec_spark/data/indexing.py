"""Outside ids to indices: markets, items (over all markets) and users (per market), each in the order of their ids.

The indices follow from the set of ids alone, so partitioning and order of the rows do not matter. Markets and the items
of each market are counted by Spark and numbered on the driver (the catalogue fits there by design); users are numbered
on Spark by one window per market: a market's users, ids only, are sorted by one task, which spills to disk if it must.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from m3rec_spark.data.clean import Counts
from m3rec_spark.tables import arrow_schema

_FEED_FILES = 20  # at least, where there are rows for them: files are row groups, the unit that the feed shuffles
_FEED_ROWS = (4_096, 1_000_000)  # rows per file, least and most
_ROWS_PER_FILE = 2_000_000


@dataclass(frozen=True)
class ItemIndex:
    """market_ids[m] is the outside id of market m; tables `items` and `market_items` of the schema.

    cold: per market, held-out pairs whose item has no train pair there (`cold`), or none anywhere (`unknown`).
    """

    market_ids: list[str]
    items: pa.Table
    market_items: pa.Table
    cold: Counts

    def table_1(self, splits: Counts, users: dict[int, int]) -> pa.Table:
        """The table `markets`: the paper's Table 1. users: market -> its train users."""
        market, train_count, markets = (
            self.market_items[name].to_numpy() for name in ("market", "train_count", "markets")
        )
        n = len(self.market_ids)
        known = train_count > 0
        rows = [splits[market_id] for market_id in self.market_ids]
        columns = {
            "market": np.arange(n),
            "market_id": self.market_ids,
            "users": [users[m] for m in range(n)],
            "items": np.bincount(market[known], minlength=n),
            **{name: [row[name] for row in rows] for name in ("train_rows", "train", "valid", "test")},
            "shared_items": np.bincount(market[known & (markets > 1)], minlength=n),
        }
        return pa.table(columns).cast(arrow_schema("markets"))


def count_items(assigned: DataFrame) -> pa.Table:
    """(market_id, item_id, train, held): pairs of each kind, of `split.assign`'s frame. Small: markets x items."""
    counts = assigned.filter(F.col("split").isNotNull()).groupBy("market_id", "item_id")
    is_train = F.col("split") == "train"
    return counts.agg(F.count_if(is_train).alias("train"), F.count_if(~is_train).alias("held")).toArrow()


def index_items(counts: pa.Table) -> ItemIndex:
    """Numbers markets and items in the order of their ids (UTF-8 bytes), and a market's items from 0.

    Args:
        counts: of `count_items`, in any order.
    """
    counts = counts.sort_by([("market_id", "ascending"), ("item_id", "ascending")])
    market_ids, market = _number(counts["market_id"])
    item_ids, item = _number(counts["item_id"])
    train, held = counts["train"].to_numpy(), counts["held"].to_numpy()
    markets = np.bincount(item[train > 0], minlength=len(item_ids))
    starts = np.searchsorted(market, np.arange(len(market_ids)))
    items = {"item": np.arange(len(item_ids)), "item_id": item_ids, "markets": markets}
    market_items = {
        "market": market,
        "item": item,
        "local": np.arange(len(market)) - starts[market],
        "train_count": train,
        "markets": markets[item],
    }
    no_train = {"cold": held * (train == 0), "unknown": held * (markets[item] == 0)}
    sums = {name: np.bincount(market, weights=pairs, minlength=len(market_ids)) for name, pairs in no_train.items()}
    names = market_ids.to_pylist()
    return ItemIndex(
        names,
        pa.table(items).cast(arrow_schema("items")),
        pa.table(market_items).cast(arrow_schema("market_items")),
        {market_id: {name: int(sums[name][m]) for name in sums} for m, market_id in enumerate(names)},
    )


def index_users(assigned: DataFrame, market_ids: list[str]) -> DataFrame:
    """The table `users`: every user with a train pair, numbered from 0 within his market."""
    known = assigned.filter(F.col("split") == "train").select("market_id", "user_id").distinct()
    number = F.row_number().over(Window.partitionBy("market_id").orderBy("user_id")) - 1
    return known.select(_market(market_ids).alias("market"), number.alias("user"), "user_id")


def count_users(users: DataFrame) -> tuple[dict[int, int], int]:
    """(users of each market, user ids that occur in several markets) of the table `users`."""
    sizes = {row["market"]: row["count"] for row in users.groupBy("market").count().collect()}
    return sizes, users.groupBy("user_id").count().filter(F.col("count") > 1).count()


def index_pairs(assigned: DataFrame, market_ids: list[str], users: DataFrame, items: DataFrame) -> DataFrame:
    """The table `interactions`; by user and item within each of its files.

    Args:
        assigned: of `split.assign`.
        market_ids: of the item index.
        users: the table.
        items: the table.
    """
    items = items.select("item_id", "item")
    pairs = assigned.filter(F.col("split").isNotNull()).withColumn("market", _market(market_ids))
    known = pairs.join(users, ["market", "user_id"]).join(F.broadcast(items), "item_id")
    return known.select("market", "user", "item", "timestamp", "split")


def file_layout(interactions: DataFrame, rows: int) -> DataFrame:
    """Interactions laid out for writing: files and their order depend on the rows only, not on the partitioning."""
    files = max(1, -(-rows // _ROWS_PER_FILE))
    return interactions.repartition(files, "market", "user").sortWithinPartitions("market", "user", "item")


def feed_layout(interactions: DataFrame, rows: int, seed: int) -> DataFrame:
    """The table `feed`: train pairs in the order of a hash of (seed, market, user, item), laid out for writing.

    A file is what a hash of that hash gives it, so its content depends on the rows and the seed only.

    Args:
        interactions: the table.
        rows: its train pairs.
        seed: of the order.
    """
    train = interactions.filter(F.col("split") == "train").select("market", "user", "item")
    key = F.xxhash64(F.lit(seed), "market", "user", "item")
    files = train.withColumn("key", key).repartition(feed_files(rows), "key")
    return files.sortWithinPartitions("key", "market", "user", "item").drop("key")


def feed_files(rows: int) -> int:
    """Files of a feed of so many rows: 20 or more, but none of under 4,096 rows or over a million on average.

    >>> [feed_files(rows) for rows in (0, 4_095, 40_960, 208_910, 10**7, 10**9)]
    [1, 1, 10, 20, 20, 1000]
    """
    least, most = _FEED_ROWS
    return max(1, min(rows // least, max(_FEED_FILES, -(-rows // most))))


def _number(ids: pa.ChunkedArray) -> tuple[pa.Array, NDArray[np.int64]]:
    """(distinct ids in ascending order, position of each id among them)."""
    distinct = pc.unique(ids)
    distinct = distinct.take(pc.sort_indices(distinct))
    return distinct, pc.index_in(ids, value_set=distinct).to_numpy()


def _market(market_ids: list[str]) -> Column:
    ids = F.array(*(F.lit(market_id) for market_id in market_ids))
    return (F.array_position(ids, F.col("market_id")) - 1).cast("int")
