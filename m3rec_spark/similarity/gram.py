"""Co-occurrence counts A = X'X over all markets (paper, Sec. 2.3), exact integers, without a shuffle.

Users belong to one market each, so A is the sum of one Gram a market. Row a of a market's, for the slot a: for every
user who has a, one more for each slot that follows a in his history, himself included. Histories ascend, so that is the
upper half and the diagonal, and rows come out whole: nothing is added up afterwards, and counts cannot depend on
partitioning, retries or order. A user with many items costs each of their rows a little, and no task much.

Cost: sum of d (d + 1) / 2 over histories of d items, known row by row before; a pass over the row's market to collect
the counts; 16 bytes a pair in mapped files; a task holds a market's row and a batch of cells.
Notation: slot, an item in a market; cell (a, b), item a <= item b: users who have both; (a, a): users of a.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyspark.sql import SparkSession
from pyspark.sql.pandas.types import to_arrow_schema

from m3rec_spark.compiled import compiled
from m3rec_spark.data.arrays import MarketArrays, open_arrays
from m3rec_spark.paths import replacing
from m3rec_spark.schema import GRAM, DataError
from m3rec_spark.similarity import philox
from m3rec_spark.similarity.entries import Entries, open_entries
from m3rec_spark.similarity.philox import fraction, philox4x32

log = logging.getLogger(__name__)

_CELLS = 1 << 20  # of a row group
_DONE = "task int, cells long, pairs long, bytes long, seconds double"


class Task(NamedTuple):
    """Rows of the slots [first, last) of a market, and the pairs that they count."""

    market: int
    first: int
    last: int
    pairs: int


@dataclass(frozen=True)
class GramReport:
    """What was counted and written."""

    cells: int
    pairs: int
    """Sum of all counts: sum of d (d + 1) / 2."""
    tasks: int
    file_bytes: int
    task_seconds: float
    """Over all tasks."""


class Capped(NamedTuple):
    """What a cap on histories left out."""

    users: int
    pairs: int


def row_pairs(indptr: NDArray[np.int64], entries: Entries) -> NDArray[np.int64]:
    """(S,) the pairs that the row of each slot counts, the diagonal included."""
    return _row_pairs(np.asarray(indptr), *_plain(entries))


def pack(pairs: NDArray[np.int64], slot_offsets: NDArray[np.int64], pairs_per_task: int) -> list[Task]:
    """Runs of rows of one market with about pairs_per_task pairs each, at least a row; cold slots cost nothing."""
    tasks = []
    for market, (start, end) in enumerate(zip(slot_offsets[:-1].tolist(), slot_offsets[1:].tolist(), strict=True)):
        total = np.concatenate([[0], np.cumsum(pairs[start:end])])
        first = 0
        while first < end - start:
            last = int(np.searchsorted(total, total[first] + pairs_per_task, side="right")) - 1
            last = max(last, first + 1)
            if total[last] > total[first]:
                tasks.append(Task(market, start + first, start + last, int(total[last] - total[first])))
            first = last
    return tasks


def write_gram(
    spark: SparkSession, arrays_folder: Path, entries_folder: Path, folder: Path, pairs_per_task: int
) -> GramReport:
    """The Grams of all markets as Parquet files of GRAM, sorted by (market, item_a, item_b), a file a task.

    Args:
        spark: the session.
        arrays_folder: of MarketArrays, on a path that all workers can read, as are the other folders.
        entries_folder: of their transpose by slot (`entries.save_entries`).
        folder: an existing one, for the files.
        pairs_per_task: item pairs counted by a task, about. The counts do not depend on it.

    Raises:
        DataError: the counts do not add up to the pairs of the histories.
    """
    arrays, entries = open_arrays(Path(arrays_folder)), open_entries(Path(entries_folder))
    tasks = pack(row_pairs(arrays.indptr, entries), arrays.slot_offsets, pairs_per_task)
    order = sorted(range(len(tasks)), key=lambda number: -tasks[number].pairs)  # the longest first
    places = str(arrays_folder), str(entries_folder), str(folder)
    log.info("Gram: %d item pairs in %d tasks", sum(task.pairs for task in tasks), len(tasks))

    def count(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for index in batch["id"].to_pylist():
                yield _write_task(*places, order[index], tasks[order[index]])

    if not tasks:
        return GramReport(0, 0, 0, 0, 0.0)
    done = spark.range(0, len(tasks), numPartitions=len(tasks)).mapInArrow(count, _DONE).collect()
    for row in done:
        if row["pairs"] != tasks[row["task"]].pairs:
            raise DataError(
                f"the Gram counts {row['pairs']} pairs in task {row['task']}, not {tasks[row['task']].pairs}"
            )
    if sorted(row["task"] for row in done) != list(range(len(tasks))):
        raise DataError(f"the Gram has {len(done)} of {len(tasks)} tasks: run pretrain again")
    cells, pairs, size, seconds = (sum(row[name] for row in done) for name in ("cells", "pairs", "bytes", "seconds"))
    return GramReport(cells, pairs, len(tasks), size, seconds)


def _write_task(arrays_folder: str, entries_folder: str, folder: str, number: int, task: Task) -> pa.RecordBatch:
    start = time.perf_counter()
    arrays, entries = open_arrays(Path(arrays_folder)), open_entries(Path(entries_folder))
    path, schema = Path(folder) / f"part-{number:06d}.parquet", to_arrow_schema(GRAM)
    cells = pairs = 0
    with (
        replacing(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="lz4", use_dictionary=["market", "item_a", "count"]) as writer,
    ):
        for item_a, item_b, counts in cells_of(arrays, entries, task):
            columns = [np.full(len(counts), task.market, np.int32), item_a, item_b, counts]
            writer.write_table(pa.Table.from_arrays([pa.array(c) for c in columns], schema=schema))
            cells, pairs = cells + len(counts), pairs + int(counts.sum(dtype=np.int64))
    values = (number, cells, pairs, path.stat().st_size, time.perf_counter() - start)
    names = ("task", "cells", "pairs", "bytes", "seconds")
    types = (pa.int32(), pa.int64(), pa.int64(), pa.int64(), pa.float64())
    return pa.RecordBatch.from_arrays([pa.array([v], t) for v, t in zip(values, types, strict=True)], list(names))


def cells_of(
    arrays: MarketArrays, entries: Entries, task: Task
) -> Iterator[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32]]]:
    """The task's cells as (item_a, item_b, count), in order, in batches of about _CELLS."""
    begin, end = (int(x) for x in arrays.slot_offsets[task.market : task.market + 2])
    acc = np.zeros(end - begin, np.int32)
    room = _CELLS + end - begin
    items = np.ascontiguousarray(arrays.slot_items[begin:end])
    item_a, item_b, count = (np.empty(room, np.int32) for _ in range(3))
    indptr, slots = np.asarray(arrays.indptr), np.asarray(arrays.slots)
    starts, users, positions = _plain(entries)
    first = task.first
    while first < task.last:
        first, cells = _count_rows(
            indptr, slots, starts, users, positions, items, begin, first, task.last, acc, item_a, item_b, count
        )
        if cells:
            yield item_a[:cells], item_b[:cells], count[:cells]


def cap_histories(arrays: MarketArrays, max_history: int, seed: int) -> tuple[MarketArrays, Capped]:
    """An approximation: of a history longer than max_history, the items with the least random numbers are kept.

    The numbers are keyed by (row, slot, seed): the same sample on every run.
    """
    lengths = np.diff(arrays.indptr)
    keep = _sample_long(np.asarray(arrays.indptr), np.asarray(arrays.slots), max_history, *philox.key(seed))
    slots = np.asarray(arrays.slots)[keep]
    kept = np.minimum(lengths, max_history)
    capped = replace(
        arrays,
        indptr=np.concatenate([[0], np.cumsum(kept)]).astype(np.int64),
        slots=slots,
        slot_counts=np.bincount(slots, minlength=len(arrays.slot_items)).astype(np.int32),
    )
    return capped, Capped(int((lengths > max_history).sum()), int(lengths.sum() - kept.sum()))


def dense_gram(
    batches: Iterable[pa.RecordBatch], n_items: int, weights: NDArray[np.float64], dtype: Any = np.float64
) -> NDArray[Any]:
    """A = sum_m w_m A_m as a dense matrix, added up in the order of the batches.

    Args:
        batches: of GRAM (market, item_a, item_b, count).
        n_items: n.
        weights: (M,) w_m.
        dtype: float64, exact for whole weights, or float32.

    Returns:
        (n, n) in Fortran order with the lower half filled: what `ease.solve` takes.
    """
    gram = np.zeros((n_items, n_items), dtype, order="F")
    for batch in batches:
        market, item_a, item_b, count = (batch[name].to_numpy() for name in GRAM.fieldNames())
        _scatter(item_a, item_b, (weights[market] * count).astype(dtype), gram)
    return gram


def _plain(entries: Entries) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    return np.asarray(entries.indptr), np.asarray(entries.users), np.asarray(entries.positions)


@compiled
def _row_pairs(
    indptr: NDArray[np.int64], starts: NDArray[np.int64], users: NDArray[np.int32], positions: NDArray[np.int32]
) -> NDArray[np.int64]:
    pairs = np.zeros(len(starts) - 1, np.int64)
    for slot in range(len(pairs)):
        for entry in range(starts[slot], starts[slot + 1]):
            user = users[entry]
            pairs[slot] += indptr[user + 1] - indptr[user] - positions[entry]
    return pairs


@compiled
def _count_rows(
    indptr: NDArray[np.int64],
    slots: NDArray[np.int32],
    starts: NDArray[np.int64],
    users: NDArray[np.int32],
    positions: NDArray[np.int32],
    items: NDArray[np.int32],
    begin: int,
    first: int,
    last: int,
    acc: NDArray[np.int32],
    item_a: NDArray[np.int32],
    item_b: NDArray[np.int32],
    count: NDArray[np.int32],
) -> tuple[int, int]:
    """Rows from `first` on while another one surely fits; gives the row to go on with and the cells filled."""
    cells, row = 0, first
    while row < last and cells + len(acc) <= len(count):
        for entry in range(starts[row], starts[row + 1]):
            user = users[entry]
            for pair in range(indptr[user] + positions[entry], indptr[user + 1]):
                acc[slots[pair] - begin] += 1
        for place in range(row - begin, len(acc)):  # a cell is written in any case, and kept where it is not 0
            item_a[cells], item_b[cells], count[cells] = items[row - begin], items[place], acc[place]
            cells += acc[place] != 0
            acc[place] = 0
        row += 1
    return row, cells


@compiled
def _sample_long(
    indptr: NDArray[np.int64], slots: NDArray[np.int32], max_history: int, key_0: np.uint64, key_1: np.uint64
) -> NDArray[np.bool_]:
    """(N,) which pairs stay."""
    keep = np.ones(len(slots), np.bool_)
    zero, shift, low = np.uint64(0), np.uint64(32), np.uint64(0xFFFFFFFF)
    for row in range(len(indptr) - 1):
        first, last = indptr[row], indptr[row + 1]
        if last - first > max_history:
            chance = np.empty(last - first, np.float64)
            for place in range(last - first):
                word, slot = np.uint64(row), np.uint64(slots[first + place])
                drawn = philox4x32(word & low, word >> shift, slot, zero, key_0, key_1)
                chance[place] = fraction(drawn[0], drawn[1])
            for place in np.argsort(chance)[max_history:]:
                keep[first + place] = False
    return keep


@compiled
def _scatter(item_a: NDArray[np.int32], item_b: NDArray[np.int32], values: NDArray[Any], gram: NDArray[Any]) -> None:
    for cell in range(len(values)):
        gram[item_b[cell], item_a[cell]] += values[cell]
