"""A = sum_m w_m A_m for random access: every pair of items once, in the row of the one that has fewer partners.

Items are ordered by degree (partners, counted in every market; ties by index), and row a holds its partners that come
after it. All of those have at least as many partners as the row is long, so no row is longer than sqrt(2 cells), while
the full row of a popular item has n entries: the cells among k items are found by walking their k short rows (the
ordering by degree of triangle counting; Chiba and Nishizeki 1985).

Cost: three passes over the Gram, 8 bytes a cell in mapped files (12 with market weights), 60 n bytes of memory.
Cells: pairs of different items that share a user, one a market.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from m3rec_spark.compiled import compiled
from m3rec_spark.errors import CorruptTableError, UsageError

_INT32_MAX = 2**31 - 1
_Batch = tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.int32], float]


@dataclass(frozen=True)
class SymmetricGram:
    """A of n items: A[a, b] = A[b, a] is once in `values`, in row a or in row b."""

    diagonal: NDArray[np.float64]
    """(n,) A[a, a]."""
    starts: NDArray[np.int64]
    """(n,) row a: partners[starts[a]:ends[a]] and their values, in no order."""
    ends: NDArray[np.int64]
    """(n,) below the next start where several markets have a pair: one place a market was kept for it."""
    partners: NDArray[np.int32]
    """(cells,)"""
    values: NDArray[Any]
    """(cells,) A[a, partner]: int32 counts if all weights are 1, else float64."""

    @property
    def n_items(self) -> int:
        """Rows and columns of A."""
        return len(self.diagonal)


def symmetric_gram(gram_folder: str | Path, folder: Path, n_items: int, weights: NDArray[np.float64]) -> SymmetricGram:
    """Builds A from the Gram of the markets and leaves it in `folder` as .npy files.

    Args:
        gram_folder: of the table GRAM. A market's cells are added in the order of the markets: the same bits however
            the table was cut into files.
        folder: an existing one, which Spark's workers see too.
        n_items: n.
        weights: (M,) w_m, positive.

    Returns:
        A, memory-mapped.

    Raises:
        UsageError: a weight is not positive and finite.
        CorruptTableError: the table holds items outside 0..n-1 or markets outside 0..M-1.
    """
    if not (np.isfinite(weights).all() and (weights > 0).all()):
        raise UsageError(f"the weights of the markets' Grams must be positive and finite, got {weights.tolist()}")
    gram = _Gram(ds.dataset(gram_folder, format="parquet"), weights)
    degrees, diagonal = gram.degrees(n_items)
    rank = np.empty(n_items, np.int32)
    rank[np.argsort(degrees, kind="stable")] = np.arange(n_items, dtype=np.int32)
    bounds = np.zeros(n_items + 1, np.int64)
    for item_a, item_b, _, _ in gram:
        _count_rows(item_a, item_b, rank, bounds[1:])
    np.cumsum(bounds, out=bounds)

    unit = bool((weights == 1).all()) and diagonal.max(initial=0) <= _INT32_MAX  # no cell exceeds its diagonal
    with (
        _new_file(folder / "gram_partners.npy", np.int32, int(bounds[-1])) as partners,
        _new_file(folder / "gram_values.npy", np.int32 if unit else np.float64, int(bounds[-1])) as values,
    ):
        next_free = bounds[:-1].copy()
        for item_a, item_b, count, weight in gram:
            _fill(item_a, item_b, count, weight, rank, next_free, partners, values)
        ends = _merge(bounds, partners, values)
    for name, array in (("diagonal", diagonal), ("starts", bounds[:-1]), ("ends", ends)):
        np.save(folder / f"gram_{name}.npy", array)
    return open_symmetric(folder)


def open_symmetric(folder: Path) -> SymmetricGram:
    """The saved A, memory-mapped: processes of one machine share the pages.

    Raises:
        CorruptTableError: a file is absent, cut short, or does not fit the others.
    """
    try:
        arrays = {
            field.name: np.asarray(np.load(folder / f"gram_{field.name}.npy", mmap_mode="r"))
            for field in fields(SymmetricGram)
        }
    except (OSError, ValueError) as error:
        raise CorruptTableError(f"the Gram in {folder} cannot be read ({error}): run the stage again") from None
    gram = SymmetricGram(**arrays)
    if not (
        len(gram.diagonal) == len(gram.starts) == len(gram.ends)
        and len(gram.partners) == len(gram.values) >= gram.ends.max(initial=0)
    ):
        raise CorruptTableError(f"the files of the Gram in {folder} do not fit each other: run the stage again")
    return gram


@dataclass(frozen=True)
class _Gram:
    """The table GRAM and the markets' weights."""

    table: ds.Dataset
    weights: NDArray[np.float64]

    def __iter__(self) -> Iterator[_Batch]:
        """(item_a, item_b, count, weight), market by market."""
        for market, weight in enumerate(self.weights):
            for batch in self.table.to_batches(
                columns=["item_a", "item_b", "count"], filter=ds.field("market") == market
            ):
                item_a, item_b, count = (column.to_numpy() for column in batch.columns)
                yield item_a, item_b, count, float(weight)

    def degrees(self, n_items: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """(n,) partners of the items, counted in every market, and (n,) the diagonal of A; checks the table."""
        degrees, diagonal, rows = np.zeros(n_items, np.int64), np.zeros(n_items), 0
        for item_a, item_b, count, weight in self:
            if len(item_a) and (item_a.min() < 0 or item_b.max() >= n_items or (item_a > item_b).any()):
                raise CorruptTableError(
                    f"the Gram has cells outside the upper half of {n_items} items: run the stage again"
                )
            _count_partners(item_a, item_b, count, weight, degrees, diagonal)
            rows += len(item_a)
        if (lost := self.table.count_rows() - rows) != 0:
            raise CorruptTableError(f"{lost} cells of the Gram are of markets outside 0..{len(self.weights) - 1}")
        return degrees, diagonal


@contextlib.contextmanager
def _new_file(path: Path, dtype: type, size: int) -> Iterator[NDArray[Any]]:
    """A mapped .npy file to fill; other machines see what was written when the block has ended."""
    mapped = open_memmap(path, "w+", dtype, (size,))  # type: ignore[no-untyped-call]
    yield np.asarray(mapped)
    mapped.flush()


@compiled
def _count_partners(
    item_a: NDArray[np.int32],
    item_b: NDArray[np.int32],
    count: NDArray[np.int32],
    weight: float,
    degrees: NDArray[np.int64],
    diagonal: NDArray[np.float64],
) -> None:
    for cell in range(len(item_a)):
        a, b = item_a[cell], item_b[cell]
        if a == b:
            diagonal[a] += weight * count[cell]
        else:
            degrees[a] += 1
            degrees[b] += 1


@compiled
def _count_rows(
    item_a: NDArray[np.int32], item_b: NDArray[np.int32], rank: NDArray[np.int32], lengths: NDArray[np.int64]
) -> None:
    for cell in range(len(item_a)):
        a, b = item_a[cell], item_b[cell]
        if a != b:
            lengths[a if rank[a] < rank[b] else b] += 1


@compiled
def _fill(
    item_a: NDArray[np.int32],
    item_b: NDArray[np.int32],
    count: NDArray[np.int32],
    weight: float,
    rank: NDArray[np.int32],
    next_free: NDArray[np.int64],
    partners: NDArray[np.int32],
    values: NDArray[Any],
) -> None:
    for cell in range(len(item_a)):
        a, b = item_a[cell], item_b[cell]
        if a != b:
            row, partner = (a, b) if rank[a] < rank[b] else (b, a)
            slot = next_free[row]
            partners[slot] = partner
            values[slot] = weight * count[cell]
            next_free[row] = slot + 1


@compiled
def _merge(bounds: NDArray[np.int64], partners: NDArray[np.int32], values: NDArray[Any]) -> NDArray[np.int64]:
    """Adds the markets' cells of a pair up, in their order, at the place of the first; gives the ends of the rows."""
    n_items = len(bounds) - 1
    ends = np.empty(n_items, np.int64)
    place = np.full(n_items, -1, np.int64)  # of a partner in the latest row that has it
    for row in range(n_items):
        free = bounds[row]
        for cell in range(bounds[row], bounds[row + 1]):
            partner = partners[cell]
            if place[partner] >= bounds[row]:
                values[place[partner]] += values[cell]
            else:
                partners[free], values[free] = partner, values[cell]
                place[partner] = free
                free += 1
        ends[row] = free
    return ends
