"""The frozen candidate lists: for every held-out positive the same negatives, whichever model is judged.

A user's negatives are the n items of his market's pool (items with train pairs there) with the smallest
h(key, item), h being SplitMix64 and key a hash of (seed, market id, user id): a uniform sample without replacement that
depends on the ids alone, not on partitions, retries or other users. Cost: O(items of the market) per user, less than
what ranking him costs; memory: about 24 bytes x _CELLS per worker.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import to_arrow_schema

from m3rec_spark.data.arrays import MarketArrays, open_arrays
from m3rec_spark.errors import CorruptTableError
from m3rec_spark.evaluation.contract import make_contract
from m3rec_spark.schema import CANDIDATES
from m3rec_spark.tables import Workspace

log = logging.getLogger(__name__)

Seen = Literal["excluded", "included"]

_CELLS = 2_000_000  # users x items hashed at once
_USERS_PER_TASK = 4096  # with 999 negatives each: 16 MB of output
_TAKEN = np.uint64(2**64 - 1)  # above every hash, which have 63 bits


def publish_candidates(
    spark: SparkSession, workspace: Workspace, key: str, *, negatives: int, seen: Seen, seed: int
) -> dict[str, Any]:
    """Freezes the candidates of the published interactions and arrays; publishes them with their contract.

    Args:
        spark: the session.
        workspace: holds interactions, users, markets, items and arrays already.
        key: provenance key of the table.
        negatives: per positive; all eligible items where there are fewer.
        seen: whether the user's own items may be negatives.
        seed: of the sampling.

    Returns:
        The contract, as it stands in the manifest's extra["contract"].
    """
    extra: dict[str, Any] = {}  # publishing() reads it when the block ends
    with workspace.publishing("candidates", key, extra=extra) as folder:
        frame = freeze_candidates(spark, workspace, workspace.folder("arrays"), negatives, seen, seed)
        frame = frame.filter(F.size("negatives") > 0)  # against nothing every model is right: that is no evidence
        frame.write.mode("append").parquet(str(folder))
        frozen = spark.read.schema(CANDIDATES).parquet(str(folder))
        ids = {name: workspace.read(spark, name) for name in ("markets", "users", "items")}
        extra["contract"] = make_contract(frozen, **ids, negatives=negatives, seen=seen, seed=seed)
    if without := _held_out(workspace) - extra["contract"]["counts"]["positives"]:
        log.warning("%d held-out pairs have nothing to be ranked against in their market: not evaluated", without)
    return dict(extra["contract"])


def freeze_candidates(
    spark: SparkSession, workspace: Workspace, arrays_folder: Path, negatives: int, seen: Seen, seed: int
) -> DataFrame:
    """CANDIDATES of the published held-out interactions (split valid or test), ordered by market and user."""
    markets = workspace.read(spark, "markets").select("market", "market_id")
    held = workspace.read(spark, "interactions").filter(F.col("split") != "train")
    tasks = 1 + _held_out(workspace) // _USERS_PER_TASK
    keyed = (
        held.join(workspace.read(spark, "users"), on=["market", "user"], how="inner")
        .join(F.broadcast(markets), on="market", how="inner")
        .select("market", "user", "item", "split", F.xxhash64(F.lit(str(seed)), "market_id", "user_id").alias("key"))
        .repartitionByRange(tasks, "market", "user")  # a worker that ranks them later meets few markets
        .sortWithinPartitions("market", "user", "item")
    )
    folder = str(arrays_folder)

    def draw(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        arrays = open_arrays(Path(folder))
        for batch in batches:
            yield from _candidate_batches(arrays, batch, negatives, seen)

    return keyed.mapInArrow(draw, CANDIDATES)


def draw_negatives(
    items: NDArray[np.int32], eligible: NDArray[np.bool_], n: int, keys: NDArray[np.uint64]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """A uniform sample without replacement of the eligible items, for each of B users.

    Args:
        items: (I,) what the sample is made of, ascending.
        eligible: (B, I).
        n: how many; a user with fewer eligible items gets all of them.
        keys: (B,) random 64-bit keys; same key and items, same order of preference.

    Returns:
        Arrow list offsets (B+1,) and the samples one after another, each ascending.
    """
    mixed = keys[:, None] + items.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)  # SplitMix64, state by item
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed ^= mixed >> np.uint64(shift)
        mixed *= np.uint64(factor)
    mixed >>= np.uint64(1)
    mixed[~eligible] = _TAKEN
    taken = min(n, len(items))
    chosen = np.argpartition(mixed, taken - 1, axis=1)[:, :taken] if taken else np.empty((len(keys), 0), np.intp)
    chosen.sort(axis=1)
    kept = np.take_along_axis(eligible, chosen, axis=1)
    return np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int32), items[chosen[kept]]


def eligible_items(
    arrays: MarketArrays, market: int, users: NDArray[np.int32], positives: NDArray[np.intp], seen: Seen
) -> NDArray[np.bool_]:
    """(B, items of the market): what may stand against each user's positive (a local index).

    The pool of the market, without the positive and, where seen is "excluded", without the user's history.
    """
    pool = arrays.slot_counts[arrays.market_slots(market)] > 0
    eligible = np.tile(pool, (len(users), 1))
    if seen == "excluded":
        history = arrays.history(market, users)
        eligible[np.repeat(np.arange(len(users)), np.diff(history.indptr)), history.indices] = False
    eligible[np.arange(len(users)), positives] = False
    return eligible


def local_indices(arrays: MarketArrays, market: int, items: NDArray[np.int32]) -> NDArray[np.intp]:
    """Positions of global items among the market's.

    Raises:
        CorruptTableError: the market does not know an item.
    """
    own = arrays.slot_items[arrays.market_slots(market)]
    local = np.searchsorted(own, items)
    if not np.array_equal(own[np.minimum(local, len(own) - 1)], items):
        raise CorruptTableError(f"market {market} does not know some candidate items: rerun prepare with --force")
    return local


def market_blocks(markets: NDArray[np.int32], size: int) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """(market, positions of at most `size` of its rows) until all rows are covered.

    >>> [(market, list(rows)) for market, rows in market_blocks(np.array([5, 5, 3, 5]), size=2)]
    [(3, [2]), (5, [0, 1]), (5, [3])]
    """
    for market in np.unique(markets):
        rows = np.flatnonzero(markets == market)
        for start in range(0, len(rows), size):
            yield int(market), rows[start : start + size]


def _held_out(workspace: Workspace) -> int:
    """Held-out pairs of all markets, by the published markets."""
    counts = workspace.read_arrow("markets", ["valid", "test"])
    return sum(int(column.to_numpy().sum()) for column in counts.columns)


def _candidate_batches(
    arrays: MarketArrays, batch: pa.RecordBatch, negatives: int, seen: Seen
) -> Iterator[pa.RecordBatch]:
    schema = to_arrow_schema(CANDIDATES)
    markets, users, positives = (batch.column(name).to_numpy() for name in ("market", "user", "item"))
    keys = batch.column("key").to_numpy().view(np.uint64)
    size = max(1, _CELLS // max(1, int(np.diff(arrays.slot_offsets).max())))
    for market, rows in market_blocks(markets, size):
        slots = arrays.market_slots(market)
        local = local_indices(arrays, market, positives[rows])
        eligible = eligible_items(arrays, market, users[rows], local, seen)
        offsets, drawn = draw_negatives(arrays.slot_items[slots], eligible, negatives, keys[rows])
        columns = {
            "market": markets[rows],
            "user": users[rows],
            "positive": positives[rows],
            "half": batch.column("split").take(pa.array(rows)),
            "cold": arrays.slot_counts[slots][local] == 0,
            "negatives": pa.ListArray.from_arrays(pa.array(offsets), pa.array(drawn)),
        }
        yield pa.RecordBatch.from_arrays([pa.array(columns[f.name]).cast(f.type) for f in schema], schema=schema)
