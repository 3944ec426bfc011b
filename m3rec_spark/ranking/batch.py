"""Recommendations for all users, or for some, as Parquet files that the Spark tasks write themselves: no shuffle.

A task owns a run of users, in the order of their rows, and writes one file for each market that it meets, under a name
that follows from the task: a task that is killed, or runs twice, leaves one whole file. Only counts come back.
Memory of a task: blocks of BLOCK users (block_lists), and their lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyspark import TaskContext
from pyspark.sql import DataFrame, SparkSession

from m3rec_spark.data.arrays import open_arrays
from m3rec_spark.paths import replacing
from m3rec_spark.ranking.block_lists import block_lists
from m3rec_spark.ranking.bundle import Places, open_places
from m3rec_spark.ranking.recommender import Recommender, as_json
from m3rec_spark.ranking.topk import Lists
from m3rec_spark.similarity.tasks import forget_zip_importers, one_task_blas

BLOCK = 1024  # users scored at once
_USERS_OF_A_TASK = 1 << 18
_ESCAPED = frozenset("\"#%'*/:=?\\{[]^\x7f")
_REPORT = "market int, users long, rows long, short long"
_IDS = pa.dictionary(pa.int32(), pa.string())  # plain text in the file
FILE_SCHEMA = pa.schema(
    [
        ("user_id", _IDS), ("rank", pa.int32()), ("item_id", _IDS), ("score", pa.float32()),
        ("reasons", pa.list_(pa.string())),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Work:
    """What a task needs; its paths are those of the workers too."""

    places: Places
    target: str
    k: int
    reasons: bool = False


@dataclass(frozen=True)
class Written:
    """Of one market. short: users whose list has fewer than k items, as the market has no more for them."""

    users: int
    rows: int
    short: int


def recommend_all(spark: SparkSession, work: Work, slots: int) -> dict[int, Written]:
    """Lists for every user of every market. slots: tasks that run at once."""
    n_rows = open_arrays(Path(work.places.arrays)).n_rows
    tasks = max(1, min(-(-n_rows // BLOCK), max(2 * slots, -(-n_rows // _USERS_OF_A_TASK))))
    bounds = np.linspace(0, n_rows, tasks + 1).astype(np.int64)

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for task in batch["id"].to_pylist():
                yield from _write(work, task, np.arange(bounds[task], bounds[task + 1]))
        forget_zip_importers()

    return _collected(spark.range(0, tasks, numPartitions=tasks).mapInArrow(run, _REPORT))


def recommend_some(users: DataFrame, work: Work) -> dict[int, Written]:
    """Lists for the users of a frame with the column `row` (long, of MarketArrays), each once, sorted in its tasks."""

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        rows = [batch["row"].to_numpy() for batch in batches]
        context = TaskContext.get()
        assert context is not None  # inside a task there is one
        if rows:
            yield from _write(work, context.partitionId(), np.concatenate(rows))
        forget_zip_importers()

    return _collected(users.select("row").mapInArrow(run, _REPORT))


def _collected(report: DataFrame) -> dict[int, Written]:
    found: dict[int, Written] = {}
    for row in report.collect():  # tasks x markets
        before = found.get(row["market"], Written(0, 0, 0))
        found[row["market"]] = Written(
            before.users + row["users"], before.rows + row["rows"], before.short + row["short"]
        )
    return found


def _write(work: Work, task: int, rows: NDArray[np.int64]) -> Iterator[pa.RecordBatch]:
    """The files of one task; a row of the report for each market."""
    served = open_places(work.places)
    arrays = served.arrays
    owner = np.searchsorted(arrays.user_offsets, rows, side="right") - 1
    for market in np.unique(owner).tolist():
        mine = rows[owner == market]
        folder = Path(work.target) / f"market={escaped(served.markets[market])}"
        folder.mkdir(parents=True, exist_ok=True)
        own = arrays.slot_items[arrays.market_slots(market)]
        item_ids = served.items.column.take(pa.array(own)).cast(pa.string())
        count = short = 0
        with replacing(folder / f"part-{task:06d}.parquet") as temporary:
            with pq.ParquetWriter(temporary, FILE_SCHEMA, store_schema=False) as writer:
                for start in range(0, len(mine), BLOCK):
                    block = mine[start : start + BLOCK]
                    local = (block - arrays.user_offsets[market]).astype(np.int32)
                    with one_task_blas():
                        lists = block_lists(served.scorer, arrays, market, local, work.k)
                    user_ids = served.users.column.take(pa.array(block)).cast(pa.string())
                    reasons = _reasons(served, market, local, lists) if work.reasons else None
                    writer.write_batch(_batch(lists, user_ids, item_ids, reasons))
                    count += len(lists.items)
                    short += int((np.diff(lists.offsets) < work.k).sum())
        yield pa.RecordBatch.from_pydict(
            {"market": pa.array([market], pa.int32()), "users": [len(mine)], "rows": [count], "short": [short]}
        )


def escaped(value: str) -> str:
    """A value as Hive and Spark write it into the name of a partition's folder.

    >>> escaped("a/b=ü")
    'a%2Fb%3Dü'
    """
    return "".join(f"%{ord(one):02X}" if one in _ESCAPED or one < " " else one for one in value)


def _batch(lists: Lists, user_ids: pa.Array, item_ids: pa.Array, reasons: pa.Array | None) -> pa.RecordBatch:
    """Of FILE_SCHEMA. Ids go as dictionaries, so that no text is repeated on the way."""
    lengths = np.diff(lists.offsets)
    owner = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    rank = np.arange(len(owner)) - lists.offsets[owner] + 1
    columns = [
        pa.DictionaryArray.from_arrays(pa.array(owner), user_ids),
        pa.array(rank.astype(np.int32)),
        pa.DictionaryArray.from_arrays(pa.array(lists.items), item_ids),
        pa.array(lists.scores),
        reasons if reasons is not None else pa.nulls(len(owner), pa.list_(pa.string())),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=FILE_SCHEMA)


def _reasons(served: Recommender, market: int, users: NDArray[np.int32], lists: Lists) -> pa.Array:
    """The reasons of the items in the lists, as the served model gives them."""
    items, texts = lists.items.astype(np.intp), []
    history, local = served.arrays.history(market, users), served.scorer.cosine.local(served.arrays, market, users)
    for row in range(len(users)):
        bought = history.indices[history.indptr[row] : history.indptr[row + 1]].astype(np.intp)
        mine = items[lists.offsets[row] : lists.offsets[row + 1]]
        texts += [as_json(reasons) for reasons in served.reasons(market, bought, local[row], mine)]
    return pa.array(texts, pa.list_(pa.string()))
