"""Random walks over co-purchased items (paper, eq. 5), sampled from X: A = X'X is never needed.

P = D^-1 A. From item i take one of his users u with weight d_u - 1, then another of u's items uniformly: item j comes
with probability sum_u X_ui X_uj / sum_u X_ui (d_u - 1) = A_ij / (sum of row i off the diagonal), which is P without
self-loops. With weight d_u and all of u's items it is P of eq. 5 with the diagonal of A. (u is "he", an item's user.)

Cost of a step: one binary search in nnz(X) integers. Random numbers are keyed by (seed, start item, walk number, step),
so that the walks are the same on any partitioning and after any retry.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import to_arrow_schema

from m3rec_spark.schema import WALKS
from m3rec_spark.similarity.capacity import require
from m3rec_spark.similarity.philox import uniforms


@dataclass(frozen=True)
class WalkGraph:
    """X by user and by item, with what a step needs. An entry is a one of X; R users, n items.

    Attributes:
        indptr: (R + 1,) int64; user r has items[indptr[r]:indptr[r + 1]].
        items: (nnz,) int32.
        item_indptr: (n + 1,) int64; item i has the entries item_indptr[i]:item_indptr[i + 1] of the next three.
        users: (nnz,) int32, ordered by item: the user of the entry.
        positions: (nnz,) int32: where the entry stands among its user's items.
        cumulative: (nnz + 1,) int64: sum of the weights of the entries before, over all items in one go.
        self_loops: (1,) bool: weight d_u and any item of the user; else d_u - 1 and any other item.
    """

    indptr: NDArray[np.int64]
    items: NDArray[np.int32]
    item_indptr: NDArray[np.int64]
    users: NDArray[np.int32]
    positions: NDArray[np.int32]
    cumulative: NDArray[np.int64]
    self_loops: NDArray[np.bool_]

    @property
    def n_items(self) -> int:
        """Items with and without neighbours: n."""
        return len(self.item_indptr) - 1

    def degrees(self) -> NDArray[np.int64]:
        """(n,) the row sums of A (off the diagonal, or with it under self_loops): deg(v_i) of eq. 5."""
        return np.diff(self.cumulative[self.item_indptr])


def plan(n_pairs: int, n_items: int) -> int:
    """Peak bytes of `build_graph`, checked before anything is allocated.

    Raises:
        CapacityError: when they are more than the machine has to give.
    """
    needed = 64 * n_pairs + 32 * n_items  # the arrays take 20 bytes a pair, the sort by item and its inputs the rest
    require(needed, f"the walk graph of {n_pairs:,} pairs", "use a larger driver, or clean.min_item_users")
    return needed


def build_graph(
    indptr: NDArray[np.int64], items: NDArray[np.int32], n_items: int, self_loops: bool = False
) -> WalkGraph:
    """The graph of users' histories: user r has the distinct items[indptr[r]:indptr[r + 1]]."""
    lengths = np.diff(indptr)
    by_item = np.argsort(items, kind="stable")
    users = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)[by_item]
    weights = lengths[users] - (0 if self_loops else 1)
    return WalkGraph(
        indptr=np.asarray(indptr, np.int64),
        items=np.asarray(items, np.int32),
        item_indptr=np.concatenate([[0], np.cumsum(np.bincount(items, minlength=n_items))]),
        users=users,
        positions=(by_item - indptr[users]).astype(np.int32),
        cumulative=np.concatenate([[0], np.cumsum(weights)]),
        self_loops=np.array([self_loops]),
    )


def save_graph(graph: WalkGraph, folder: Path) -> None:
    """Writes one .npy file an array, for workers to memory-map."""
    for field in fields(graph):
        np.save(folder / f"{field.name}.npy", getattr(graph, field.name))


def open_graph(folder: str | Path) -> WalkGraph:
    """The graph of `save_graph`, memory-mapped: the workers of a machine share one copy."""
    arrays = {f.name: np.load(Path(folder) / f"{f.name}.npy", mmap_mode="r") for f in fields(WalkGraph)}
    return WalkGraph(**arrays)


def walk(
    graph: WalkGraph, starts: NDArray[np.int32], numbers: NDArray[np.int64], length: int, seed: int
) -> NDArray[np.int32]:
    """(W, length) items: row k is walk number numbers[k] from starts[k], the start included.

    Args:
        graph: every start must have a neighbour: degrees()[start] > 0.
        starts: (W,) items.
        numbers: (W,) the walk's number among those of its start, 0 up.
        length: items of a walk.
        seed: 64 bit.
    """
    walks = np.empty((len(starts), length), np.int32)
    walks[:, 0] = starts
    for step in range(1, length):
        walks[:, step] = _step(graph, walks[:, step - 1], *uniforms(starts, numbers, step, seed))
    return walks


def _step(
    graph: WalkGraph, items: NDArray[np.int32], which_user: NDArray[np.float64], which_item: NDArray[np.float64]
) -> NDArray[np.int32]:
    """The next item of each walk, by two uniform numbers in [0, 1)."""
    low = graph.cumulative[graph.item_indptr[items]]
    degree = graph.cumulative[graph.item_indptr[items + 1]] - low
    entry = np.searchsorted(graph.cumulative, low + _pick(which_user, degree), side="right") - 1  # skips weight 0
    first = graph.indptr[graph.users[entry]]
    length = graph.indptr[graph.users[entry] + 1] - first
    if graph.self_loops[0]:
        chosen = _pick(which_item, length)
    else:
        chosen = _pick(which_item, length - 1)
        chosen += chosen >= graph.positions[entry]  # the item itself is left out
    following: NDArray[np.int32] = graph.items[first + chosen]
    return following


def _pick(uniform: NDArray[np.float64], count: NDArray[np.int64]) -> NDArray[np.int64]:
    """An integer in [0, count). Uniforms of 53 bits never round up to count, as counts are below 2^52."""
    return (uniform * count).astype(np.int64)


def sample_walks(
    spark: SparkSession, folder: Path, per_item: int, length: int, seed: int, partitions: int | None = None
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
    """
    n_items = open_graph(folder).n_items
    place = str(folder)

    def sample(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        graph = open_graph(place)
        connected = graph.degrees() > 0
        for batch in batches:
            ids = batch["id"].to_numpy()
            ids = ids[connected[ids // per_item]]
            walks = walk(graph, (ids // per_item).astype(np.int32), ids % per_item, length, seed)
            offsets = np.arange(0, walks.size + 1, length, dtype=np.int32)
            columns = [pa.array(ids), pa.ListArray.from_arrays(pa.array(offsets), pa.array(walks.ravel()))]
            yield pa.RecordBatch.from_arrays(columns, schema=to_arrow_schema(WALKS))

    return spark.range(0, n_items * per_item, numPartitions=partitions).mapInArrow(sample, WALKS)


def walk_matrix(table: pa.Table) -> NDArray[np.int32]:
    """WALKS, which are of one length, as (W, length) items in the order of their ids."""
    flat: NDArray[np.int32] = table["items"].combine_chunks().flatten().to_numpy()
    return flat.reshape(len(table), -1)[np.argsort(table["walk"].to_numpy())]
