"""What is published of B (paper, eq. 4, 7): B-Glob, and B within every market.

B comes in rows from any exact solver, so that no process holds more of it than a block of rows, unless the solver
does. A block of k rows costs k n to filter, and writes its rows of the markets' own blocks of B.

Notation: n items; A (n, n) co-occurrence counts; B (n, n) weights, row = item in the history, column = item scored.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession
from scipy import sparse

from m3rec_spark.paths import replacing
from m3rec_spark.schema import SIMILARITY
from m3rec_spark.similarity.b_glob import filter_rows, normalise_rows
from m3rec_spark.similarity.similarity_table import similarity_batch
from m3rec_spark.similarity.tasks import forget_zip_importers, one_task_blas


class Weights(Protocol):
    """B by rows, wherever it is kept. Those of the distributed solvers hold paths only and pickle into a Spark task."""

    @property
    def n_items(self) -> int:
        """Items: n."""

    def rows(self, first: int, last: int) -> NDArray[np.float64]:
        """(last - first, n) rows of B; the diagonal is exactly 0."""


@dataclass(frozen=True)
class DenseWeights:
    """B in memory, as `ease.solve` gives it."""

    array: NDArray[np.float64]

    @property
    def n_items(self) -> int:
        """Items: n."""
        return len(self.array)

    def rows(self, first: int, last: int) -> NDArray[np.float64]:
        """See Weights: a view."""
        return self.array[first:last]


@dataclass(frozen=True)
class MarketItems:
    """The items of M markets, as in MarketArrays: market m sells slot_items[slot_offsets[m]:slot_offsets[m + 1]]."""

    slot_items: NDArray[np.int32]
    slot_offsets: NDArray[np.int64]

    def __iter__(self) -> Iterator[NDArray[np.int32]]:
        """The items of each market, ascending."""
        for first, last in zip(self.slot_offsets[:-1], self.slot_offsets[1:], strict=True):
            yield self.slot_items[first:last]


@dataclass(frozen=True)
class Outputs:
    """Where a block of rows goes to, and what is taken of it."""

    markets: MarketItems
    epsilon: float
    """Entries below it are dropped, eq. 7."""
    folder: Path
    """Of the table `ease`: market-<m>/rows-<first local row>.npy, float32 (rows, items of m)."""
    columns: NDArray[np.int64]
    """Of the certificate."""
    proof: Path
    """A folder for columns-<first row>.npy: (rows, columns) float64."""
    block: int = 512
    """Rows worked on at once: the memory beside B is a few block x n."""


def publish_rows(weights: Weights, first: int, outputs: Outputs) -> sparse.csr_matrix:
    """Writes a block of rows, from `first` on, for every market; gives its rows of B-Glob (eq. 7)."""
    last = min(first + outputs.block, weights.n_items)
    rows = weights.rows(first, last)
    for market, items in enumerate(outputs.markets):
        low, high = np.searchsorted(items, [first, last])
        if low < high:
            block = rows[np.ix_(items[low:high] - first, items)].astype(np.float32)
            _save(outputs.folder / f"market-{market:05d}" / f"rows-{low:09d}.npy", block)
    _save(outputs.proof / f"columns-{first:09d}.npy", rows[:, outputs.columns])
    return normalise_rows(filter_rows(rows, outputs.epsilon))


def similarity_on_driver(weights: Weights, outputs: Outputs) -> Iterator[pa.RecordBatch]:
    """All blocks one after another: batches of SIMILARITY."""
    for first in range(0, weights.n_items, outputs.block):
        yield similarity_batch(publish_rows(weights, first, outputs), first)


def similarity_on_spark(spark: SparkSession, weights: Weights, outputs: Outputs) -> DataFrame:
    """SIMILARITY, a task a block; no shuffle. The folders of `outputs` must be the workers' too."""
    blocks = -(-weights.n_items // outputs.block)

    def publish(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for first in batch["id"].to_pylist():
                with one_task_blas():
                    rows = publish_rows(weights, first, outputs)
                yield similarity_batch(rows, first)
        forget_zip_importers()

    return spark.range(0, weights.n_items, outputs.block, numPartitions=blocks).mapInArrow(publish, SIMILARITY)


def solution_columns(proof: Path) -> NDArray[np.float64]:
    """(n, columns) of B, from what `publish_rows` left."""
    return np.concatenate([np.load(file) for file in sorted(proof.glob("columns-*.npy"))])


def publish_sparse(weights: sparse.csr_matrix, markets: MarketItems, folder: Path) -> None:
    """The markets' blocks of an approximate, sparse B: market-<m>.npz, float32 CSR (items of m, items of m)."""
    for market, items in enumerate(markets):
        block = weights[items][:, items].astype(np.float32).tocsr()
        sparse.save_npz(folder / f"market-{market:05d}.npz", block)


def _save(path: Path, array: NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array)
