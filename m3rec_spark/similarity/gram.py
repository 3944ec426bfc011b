"""Co-occurrence counts A = X'X over all markets (paper, Sec. 2.3), exact integers, without a shuffle.

Users belong to one market each, so A is the sum of one Gram a market. Row a of a market's, for the slot a: for every
user who has a, one more for each slot that follows a in his history, himself included. Histories ascend, so that is the
upper half and the diagonal, and rows come out whole: nothing is added up afterwards, and counts cannot depend on
partitioning, retries or order. A user with many items costs each of their rows a little, and no task much.

Cost: sum of d (d + 1) / 2 over histories of d items, known row by row before; 12 bytes a pair of X in mapped files on
top of the histories; a task holds a market's row and a batch of cells (`gram_rows`). 20 ns a cell for its file.
Notation: slot, an item in a market; cell (a, b), item a <= item b: users who have both; (a, a): users of a.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyspark.sql import Row, SparkSession
from pyspark.sql.pandas.types import to_arrow_schema
from scipy import sparse

from m3rec_spark.compiled import compiled
from m3rec_spark.data.arrays import MarketArrays, open_arrays
from m3rec_spark.errors import DataError, UsageError
from m3rec_spark.paths import replacing
from m3rec_spark.schema import GRAM
from m3rec_spark.similarity import philox
from m3rec_spark.similarity.entries import open_entries
from m3rec_spark.similarity.gram_rows import Task, cells_of, pack, row_pairs
from m3rec_spark.similarity.philox import fraction, philox4x32
from m3rec_spark.similarity.tasks import forget_zip_importers

log = logging.getLogger(__name__)

# Measured on 4 M cells: 46 M cells/s and 1.3 bytes a cell; with LZ4 or dictionaries of counts 26 to 31 M and 1.8 bytes
_FORMAT: dict[str, Any] = {
    "compression": "none",
    "use_dictionary": ["market", "item_a"],
    "column_encoding": {"item_b": "DELTA_BINARY_PACKED", "count": "DELTA_BINARY_PACKED"},
}
_DONE = "task int, cells long, pairs long, bytes long, seconds double"


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
    longest_task: float
    """Seconds."""


class Capped(NamedTuple):
    """What a cap on histories left out."""

    users: int
    pairs: int


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
        UsageError: workers do not write where the driver looks.
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
        forget_zip_importers()

    done = spark.range(0, len(tasks), numPartitions=max(1, len(tasks))).mapInArrow(count, _DONE).collect()
    _check(done, tasks, Path(folder))
    cells, pairs, size, seconds = (sum(row[name] for row in done) for name in ("cells", "pairs", "bytes", "seconds"))
    report = GramReport(cells, pairs, len(tasks), size, seconds, max((row["seconds"] for row in done), default=0.0))
    log.info(
        "Gram: %d cells in %.1f MB, %.2f s over all tasks, the longest %.2f s",
        cells, size / 1e6, seconds, report.longest_task,
    )  # fmt: skip
    return report


def _check(done: list[Row], tasks: list[Task], folder: Path) -> None:
    """Every task has counted what was planned, and its file is here, whole."""
    if sorted(row["task"] for row in done) != list(range(len(tasks))):
        raise DataError(f"the Gram has {len(done)} of {len(tasks)} tasks: run pretrain again")
    for row in done:
        number, planned = row["task"], tasks[row["task"]].pairs
        if row["pairs"] != planned:
            raise DataError(f"the Gram counts {row['pairs']} pairs in task {number}, not {planned}: rerun prepare")
        file = _file(folder, number)
        if not file.is_file() or file.stat().st_size != row["bytes"]:
            raise UsageError(
                f"a worker wrote {file}, which is not what the driver finds there: the workspace must lie on storage "
                "that the driver and all Spark workers share"
            )


def _file(folder: Path, number: int) -> Path:
    return folder / f"part-{number:06d}.parquet"


def _write_task(arrays_folder: str, entries_folder: str, folder: str, number: int, task: Task) -> pa.RecordBatch:
    start = time.perf_counter()
    if not Path(folder).is_dir():
        raise UsageError(
            f"the worker on {platform.node()} does not see {folder}: the workspace must lie on storage that the "
            "driver and all Spark workers share"
        )
    arrays, entries = open_arrays(Path(arrays_folder)), open_entries(Path(entries_folder))
    path, schema = _file(Path(folder), number), to_arrow_schema(GRAM)
    cells = pairs = 0
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema, **_FORMAT) as writer:
        for found in cells_of(arrays, entries, task):
            columns = [np.full(len(found.counts), task.market, np.int32), *found]
            writer.write_batch(pa.RecordBatch.from_arrays([pa.array(column) for column in columns], schema=schema))
            cells, pairs = cells + len(found.counts), pairs + int(found.counts.sum(dtype=np.int64))
        writer.close()
        size = temporary.stat().st_size
    values = (number, cells, pairs, size, time.perf_counter() - start)
    names = ("task", "cells", "pairs", "bytes", "seconds")
    types = (pa.int32(), pa.int64(), pa.int64(), pa.int64(), pa.float64())
    return pa.RecordBatch.from_arrays([pa.array([v], t) for v, t in zip(values, types, strict=True)], list(names))


def cells_by_market(folder: Path, n_markets: int) -> NDArray[np.int64]:
    """(M,) cells of each market's Gram, by the footers alone: a file of `write_gram` holds one market."""
    found = np.zeros(n_markets, np.int64)
    for path in sorted(folder.glob("*.parquet")):
        footer = pq.read_metadata(path)
        if footer.num_rows:
            found[footer.row_group(0).column(0).statistics.min] += footer.num_rows
    return found


def cap_histories(arrays: MarketArrays, max_history: int, seed: int) -> tuple[MarketArrays, Capped]:
    """An approximation: of a history longer than max_history, the items with the least random numbers are kept.

    The numbers are keyed by (row, slot, seed): the same sample on every run. Takes a byte a pair, and a copy of what
    stays.

    Args:
        arrays: X; not changed.
        max_history: the longest history that stays whole.
        seed: same seed, same sample.

    Returns:
        X without what is left out (indptr, slots and slot_counts), and how many users and pairs that concerns.
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


def sparse_gram(item_a: NDArray[Any], item_b: NDArray[Any], counts: NDArray[Any], n_items: int) -> sparse.csr_matrix:
    """A (n, n), all of it, from cells of its upper half; several of one place are added up."""
    upper = sparse.coo_matrix((counts, (item_a, item_b)), shape=(n_items, n_items)).tocsr()
    return sparse.csr_matrix(upper + sparse.triu(upper, 1).T)


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
            for place in np.argsort(chance, kind="mergesort")[max_history:]:
                keep[first + place] = False
    return keep


@compiled
def _scatter(item_a: NDArray[np.int32], item_b: NDArray[np.int32], values: NDArray[Any], gram: NDArray[Any]) -> None:
    for cell in range(len(values)):
        gram[item_b[cell], item_a[cell]] += values[cell]
