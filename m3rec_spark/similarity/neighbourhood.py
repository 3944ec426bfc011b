"""Approximate EASE^R for catalogues beyond an n x n inverse (Steck 2019, arXiv:1910.09645).

N_j are the m items most like item j. Column j of B is eq. 4 on N_j and j alone, the ridge regression of j on N_j:
C = (A + lambda I)[N_j + j, N_j + j]^-1,  B[i, j] = -C_ij / C_jj  for i in N_j, else 0.
With all other items as N_j it is EASE's own column.

Cost: n m^3 / 3 flops and n m rows of A read, in one Spark job without a shuffle; see `plan`.
Notation: n items; A (n, n) co-occurrence counts; B (n, n) weights, row = item in the history, column = item scored.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyspark.sql import SparkSession
from scipy import sparse
from scipy.linalg import lapack
from threadpoolctl import threadpool_limits

from m3rec_spark.compiled import compiled
from m3rec_spark.errors import CorruptTableError, DataError, UsageError
from m3rec_spark.paths import replacing
from m3rec_spark.similarity.neighbours import choose_neighbours
from m3rec_spark.similarity.symmetric import SymmetricGram, open_symmetric

BLOCK = 256  # items of a file of B, whatever the partitions
TASK_ITEMS = 4096  # of a task, about: it reads A once, to choose; a tenth of its time at 10^3 partners an item
_ENTRY = np.dtype([("item", np.int32), ("weight", np.float32)])
_HEADER = "columns.json"  # written last
_REPORT = "first long, entries long, fewer long, none long"


class Plan(NamedTuple):
    """What the solver takes."""

    flops: float
    """Of the Cholesky factors."""
    driver_bytes: int
    """Peak, when B is read."""
    task_bytes: int
    """Of a Spark task."""
    file_bytes: int
    """Of A and B on disk, at most. A is mapped and read at random: quick where the machine can cache it."""


@dataclass(frozen=True)
class NeighbourhoodReport:
    """How the neighbourhoods came out."""

    items: int
    neighbours: int
    """m."""
    entries: int
    """Of B."""
    fewer: int
    """Items that co-occur with some others, but with fewer than m: N_j are all of them."""
    none: int
    """Items that co-occur with no other: their column of B is empty."""


def plan(n_items: int, cells: int, neighbours: int) -> Plan:
    """What `symmetric_gram`, `solve_neighbourhoods` and `read_weights` take, for a Gram of `cells` rows."""
    m = min(neighbours, n_items - 1)
    return Plan(
        flops=n_items * (m + 1) ** 3 / 3,
        driver_bytes=60 * n_items + 24 * n_items * m,
        task_bytes=12 * TASK_ITEMS * m + 8 * (m + 1) ** 2 + 4 * n_items,
        file_bytes=12 * cells + 24 * n_items + 8 * n_items * m,
    )


def solve_columns(
    gram: SymmetricGram, neighbours: NDArray[np.int32], first: int, lambda_f: float
) -> NDArray[np.float64]:
    """Columns first.. of B.

    Args:
        gram: A.
        neighbours: (k, m) N_j of items first .. first + k - 1; -1: none.
        first: item.
        lambda_f: ridge weight, > 0.

    Returns:
        (k, m) B[neighbours[r], first + r]; 0 where there is none.

    Raises:
        DataError: a system is not positive definite; names the item.
    """
    weights = np.zeros(neighbours.shape)
    place = np.full(gram.n_items, -1, np.int32)
    for row, padded in enumerate(neighbours):
        items = np.append(padded[padded >= 0], np.int32(first + row))
        block = np.zeros((len(items), len(items)), order="F")
        _gather(gram.starts, gram.ends, gram.partners, gram.values, gram.diagonal, items, place, block)
        block[np.diag_indices(len(items))] += lambda_f
        factor, minor = lapack.dpotrf(block, lower=1, clean=0, overwrite_a=1)
        if minor:
            raise DataError(
                f"A + {lambda_f} I of item {first + row} and its neighbours is not positive definite, at item "
                f"{items[minor - 1]}. Counts of distinct pairs cannot do that: rebuild the Gram, or raise ease.lambda_f"
            )
        # block = L L' with j last: C's column of j solves L' c = e_j / L_jj, and its scale does not matter
        unit = np.zeros(len(items))
        unit[-1] = 1.0
        column, _ = lapack.dtrtrs(factor, unit, lower=1, trans=1, overwrite_b=1)
        weights[row, len(padded) - len(items) + 1 :] = -column[:-1] / column[-1]
    return weights


def solve_neighbourhoods(
    spark: SparkSession,
    gram_folder: Path,
    folder: Path,
    lambda_f: float,
    neighbours: int,
    partitions: int | None = None,
) -> NeighbourhoodReport:
    """B into files of `folder`: the same bytes for any number of partitions, and after retries.

    Args:
        spark: session; its workers see both folders.
        gram_folder: where `symmetric_gram` left A.
        folder: an existing one; see `read_weights`.
        lambda_f: ridge weight, > 0.
        neighbours: m, > 0.
        partitions: tasks; each reads the whole of A once, to choose. None: of TASK_ITEMS.

    Raises:
        UsageError: lambda_f or neighbours is not positive.
    """
    if not lambda_f > 0 or neighbours < 1:
        raise UsageError(f"lambda_f and neighbours must be > 0, got {lambda_f} and {neighbours}")
    n_items = open_symmetric(gram_folder).n_items
    m, partitions = min(neighbours, n_items - 1), partitions or -(-n_items // TASK_ITEMS)

    def solve(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        gram = open_symmetric(gram_folder)
        with threadpool_limits(1):  # the bits of a factor may depend on the number of threads
            for batch in batches:
                firsts = batch["id"].to_numpy()
                start, end = int(firsts.min()), min(int(firsts.max()) + BLOCK, n_items)
                chosen = choose_neighbours(gram, start, end, m)
                for first in firsts.tolist():
                    yield _solve_block(gram, chosen[first - start :][:BLOCK], first, lambda_f, folder)

    blocks = spark.range(0, n_items, BLOCK, numPartitions=partitions).mapInArrow(solve, _REPORT).toArrow()
    entries, fewer, none = (sum(blocks[name].to_pylist()) for name in ("entries", "fewer", "none"))
    (folder / _HEADER).write_text(json.dumps({"n_items": n_items}), encoding="utf-8")
    return NeighbourhoodReport(n_items, m, entries, fewer, none)


def read_weights(folder: Path) -> sparse.csr_matrix:
    """B as an (n, n) float32 CSR, from what `solve_neighbourhoods` left; 24 bytes an entry while it is made.

    Raises:
        CorruptTableError: a file is absent or damaged.
    """
    items, weights, sizes = [], [], [np.zeros(1, np.int64)]
    try:
        n_items = json.loads((folder / _HEADER).read_text(encoding="utf-8"))["n_items"]
        for first in range(0, n_items, BLOCK):
            block = np.load(_file(folder, first))
            there = block["item"] >= 0
            items.append(block["item"][there])
            weights.append(block["weight"][there])
            sizes.append(there.sum(axis=1))
    except (OSError, ValueError, LookupError) as error:
        raise CorruptTableError(f"the columns of B in {folder} cannot be read ({error}): run the stage again") from None
    columns = np.concatenate(weights), np.concatenate(items), np.cumsum(np.concatenate(sizes))
    return sparse.csc_matrix(columns, shape=(n_items, n_items)).tocsr()


def support_overlap(exact: sparse.csr_matrix, approximate: sparse.csr_matrix) -> float:
    """Jaccard index of the non-zero entries of two B-Globs (eq. 7): 1 where they are the same, or both empty.

    >>> support_overlap(sparse.csr_matrix([[0, 2, 3]]), sparse.csr_matrix([[5, 1, 0]]))
    0.3333333333333333
    """
    one, other = exact.astype(bool), approximate.astype(bool)
    both = one.multiply(other).nnz
    either = one.count_nonzero() + other.count_nonzero() - both
    return both / either if either else 1.0


def _solve_block(
    gram: SymmetricGram, chosen: NDArray[np.int32], first: int, lambda_f: float, folder: Path
) -> pa.RecordBatch:
    """A file of columns, and its line of the report."""
    entries = np.empty(chosen.shape, _ENTRY)
    entries["item"], entries["weight"] = chosen, solve_columns(gram, chosen, first, lambda_f)
    with replacing(_file(folder, first)) as path, open(path, "wb") as file:
        np.save(file, entries)
    sizes = (chosen >= 0).sum(axis=1)
    fewer, none = ((sizes > 0) & (sizes < chosen.shape[1])).sum(), (sizes == 0).sum()
    line = [pa.array([int(value)], pa.int64()) for value in (first, sizes.sum(), fewer, none)]
    return pa.RecordBatch.from_arrays(line, names=["first", "entries", "fewer", "none"])


def _file(folder: Path, first: int) -> Path:
    return folder / f"columns-{first:09d}.npy"


@compiled
def _gather(
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    partners: NDArray[np.int32],
    values: NDArray[Any],
    diagonal: NDArray[np.float64],
    items: NDArray[np.int32],
    place: NDArray[np.int32],
    block: NDArray[np.float64],
) -> None:
    """A[items, items] into the lower half of `block`, all 0 before. place: (n,) all -1, and so again in the end."""
    for k in range(len(items)):
        place[items[k]] = k
    for k in range(len(items)):
        item = items[k]
        block[k, k] = diagonal[item]
        for cell in range(starts[item], ends[item]):
            other = place[partners[cell]]
            if other >= 0:
                block[max(k, other), min(k, other)] = values[cell]
    for item in items:
        place[item] = -1
