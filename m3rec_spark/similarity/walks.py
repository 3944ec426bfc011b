"""Random walks over co-purchased items (paper, eq. 5), sampled from X: A = X'X is never needed.

P = D^-1 A. From item i take one of his users u with weight d_u - 1, then another of u's items uniformly: item j comes
with probability sum_u X_ui X_uj / sum_u X_ui (d_u - 1) = A_ij / (sum of row i off the diagonal), which is P without
self-loops. With weight d_u and all of u's items it is P of eq. 5 with the diagonal of A. (u is "he", an item's user.)
Both choices are one uniform integer below deg(v_i): walk_graph.

node2vec (Grover and Leskovec, KDD 2016; the paper's [11]) weighs a step from i to j by alpha: having come from h, it is
1/p if j = h, 1 if j co-occurs with h, else 1/q. By rejection: j is drawn from P and taken with probability
alpha / max(1, 1/p, 1/q), so that a step is drawn max(1, 1/p, 1/q) / E[alpha] times on average.

Cost of a step: O(1), about six places of memory, 50 ns on one core out of its cache; where co-occurrence is looked up,
O(c log C) for items of c <= C users. The walks are the same on any partitioning and after any retry.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import to_arrow_schema

from m3rec_spark.paths import replacing
from m3rec_spark.schema import WALKS
from m3rec_spark.similarity.tasks import forget_zip_importers
from m3rec_spark.similarity.walk_graph import WalkGraph, build_graph, open_graph, plan, save_graph
from m3rec_spark.similarity.walk_steps import advance, require_bias

__all__ = [
    "WalkGraph", "build_graph", "open_graph", "plan", "sample_walks", "save_graph", "walk", "walk_batch", "walk_matrix",
    "write_parquet", "write_walks",
]  # fmt: skip

_CHUNK = 1 << 14  # walks of a task's unit of work, and of a file


def walk(
    graph: WalkGraph,
    starts: NDArray[np.int32],
    numbers: NDArray[np.int64],
    length: int,
    seed: int,
    return_p: float = 1.0,
    inout_q: float = 1.0,
) -> NDArray[np.int32]:
    """(W, length) items: row k is walk number numbers[k] from starts[k], the start included.

    Args:
        graph: of all users; every start must have a neighbour: degrees()[start] > 0.
        starts: (W,) items.
        numbers: (W,) the walk's number among those of its start, 0 up.
        length: items of a walk.
        seed: 64 bit.
        return_p: node2vec's p.
        inout_q: node2vec's q.

    Raises:
        UsageError: p or q outside 0.01 to 100.
        ValueError: a start without a neighbour.
    """
    walks = np.empty((len(starts), length), np.int32)
    walks[:, 0] = starts
    steps = np.ones(len(starts), np.int64)
    advance(graph, walks, steps, numbers, seed, return_p, inout_q)
    if (steps < length).any():
        raise ValueError(f"item {starts[np.argmin(steps)]} has no neighbour: no walk can start there")
    return walks


def sample_walks(
    spark: SparkSession,
    folder: Path,
    per_item: int,
    length: int,
    seed: int,
    partitions: int | None = None,
    return_p: float = 1.0,
    inout_q: float = 1.0,
) -> DataFrame:
    """WALKS: `per_item` walks of `length` items from every item that has a neighbour.

    Walk w starts at item w // per_item and is its number w % per_item; the ids of items without neighbours are absent.

    Args:
        spark: the session.
        folder: of `save_graph`, on a path that the workers can read.
        per_item: walks from each item.
        length: items of a walk, the start included.
        seed: 64 bit.
        partitions: tasks; None: Spark's choice. The walks are the same on any number.
        return_p: node2vec's p.
        inout_q: node2vec's q.

    Raises:
        UsageError: p or q outside 0.01 to 100.
    """
    require_bias(return_p, inout_q)
    place, n_walks = str(folder), open_graph(folder).n_items * per_item

    def sample(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        graph = open_graph(place)
        for batch in batches:
            yield _walks_of(graph, batch["id"].to_numpy(), per_item, length, seed, return_p, inout_q)
        forget_zip_importers()

    return spark.range(0, n_walks, numPartitions=partitions).mapInArrow(sample, WALKS)


def write_walks(
    spark: SparkSession,
    folder: Path,
    target: Path,
    per_item: int,
    length: int,
    seed: int,
    partitions: int | None = None,
    return_p: float = 1.0,
    inout_q: float = 1.0,
) -> int:
    """The walks of `sample_walks` as Parquet files, written by the tasks: no item passes through the JVM.

    A file holds the walks of _CHUNK consecutive ids, whatever the number of partitions, and is named after the first.

    Args:
        spark: the session.
        folder: of `save_graph`, on a path that the workers can read.
        target: an existing folder that they can write.
        per_item: walks from each item.
        length: items of a walk, the start included.
        seed: 64 bit.
        partitions: tasks; None: Spark's choice. The files are the same on any number.
        return_p: node2vec's p.
        inout_q: node2vec's q.

    Returns:
        The number of walks.

    Raises:
        UsageError: p or q outside 0.01 to 100.
    """
    require_bias(return_p, inout_q)
    place, written, n_walks = str(folder), str(target), open_graph(folder).n_items * per_item

    def write(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        graph = open_graph(place)
        for batch in batches:
            for first in batch["id"].to_pylist():
                ids = np.arange(first, min(first + _CHUNK, n_walks))
                walks = _walks_of(graph, ids, per_item, length, seed, return_p, inout_q)
                write_parquet(walks, Path(written) / f"walks-{first:015d}.parquet")
                yield pa.RecordBatch.from_arrays([pa.array([len(walks)], pa.int64())], ["walks"])
        forget_zip_importers()

    chunks = spark.range(0, n_walks, _CHUNK, numPartitions=partitions)
    return sum(row["walks"] for row in chunks.mapInArrow(write, "walks long").collect())


def _walks_of(
    graph: WalkGraph, ids: NDArray[np.int64], per_item: int, length: int, seed: int, return_p: float, inout_q: float
) -> pa.RecordBatch:
    ids = ids[graph.rows["total"][ids // per_item] > 0]
    walks = walk(graph, (ids // per_item).astype(np.int32), ids % per_item, length, seed, return_p, inout_q)
    return walk_batch(ids, walks)


def walk_batch(ids: NDArray[np.int64], walks: NDArray[np.int32]) -> pa.RecordBatch:
    """WALKS of (W,) ids and (W, length) items."""
    offsets = np.arange(0, walks.size + 1, walks.shape[1], dtype=np.int32)
    items = pa.ListArray.from_arrays(pa.array(offsets), pa.array(walks.ravel()))
    return pa.RecordBatch.from_arrays([pa.array(ids), items], schema=to_arrow_schema(WALKS))


def write_parquet(walks: pa.RecordBatch, path: Path) -> None:
    """A whole file or none, so that a task may be run again, or twice at once."""
    with replacing(path) as temporary:
        pq.write_table(pa.Table.from_batches([walks]), temporary)


def walk_matrix(table: pa.Table) -> NDArray[np.int32]:
    """WALKS, which are of one length, as (W, length) items in the order of their ids.

    A part of the table at a time: the offsets of one list of all walks might not fit in Arrow's 32 bits.
    """
    length = len(table["items"][0]) if len(table) else 0
    matrix, place = np.empty((len(table), length), np.int32), np.empty(len(table), np.int64)
    place[np.argsort(table["walk"].to_numpy())] = np.arange(len(table))
    first = 0
    for part in table["items"].chunks:
        matrix[place[first : first + len(part)]] = part.flatten().to_numpy().reshape(len(part), length)
        first += len(part)
    return matrix
