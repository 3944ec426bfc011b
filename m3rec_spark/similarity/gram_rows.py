"""Rows of X'X, one after another, by the histories of an item's users: the loops of `similarity.gram`.

Row a counts, for every user who has a, each slot from a on in his history: Gustavson's product in the order of the
result, with one accumulator of a market's length. Two ways to collect a row: where it counts more pairs than the market
has slots after a, a pass over those; else a set of touched slots, one bit each, so that a rare item of a large market
costs a 64th of that. Cost: about 1 ns a pair and 1 to 5 ns a cell.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from m3rec_spark.compiled import compiled
from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.similarity.entries import Entries

CELLS = 1 << 20  # of a batch, about


class Task(NamedTuple):
    """Rows of the slots [first, last) of a market, and the pairs that they count."""

    market: int
    first: int
    last: int
    pairs: int


class Cells(NamedTuple):
    """Non-zero cells of a Gram's upper half, (K,) each, in the order of (item_a, item_b)."""

    item_a: NDArray[np.int32]
    item_b: NDArray[np.int32]
    counts: NDArray[np.int32]


class _Histories(NamedTuple):
    """X by user and by slot: MarketArrays and Entries as compiled loops take them."""

    indptr: NDArray[np.int64]
    slots: NDArray[np.int32]
    starts: NDArray[np.int64]
    users: NDArray[np.int32]
    positions: NDArray[np.int32]


class _Row(NamedTuple):
    """Memory of one row, by slot of the market; all 0 between rows."""

    counts: NDArray[np.int32]
    """No more than the users of the market, who are below 2^31: cannot overflow."""
    touched: NDArray[np.uint64]
    """A bit a slot, 64 in a word."""


def row_pairs(indptr: NDArray[np.int64], entries: Entries) -> NDArray[np.int64]:
    """(S,) the pairs that the row of each slot counts, the diagonal included."""
    return _row_pairs(
        np.asarray(indptr), np.asarray(entries.indptr), *map(np.asarray, (entries.users, entries.positions))
    )


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


def cells_of(arrays: MarketArrays, entries: Entries, task: Task) -> Iterator[Cells]:
    """The task's cells in order, in batches of about CELLS; each is only valid until the next is asked for."""
    begin, end = (int(offset) for offset in arrays.slot_offsets[task.market : task.market + 2])
    length = end - begin
    X = _Histories(*map(np.asarray, (arrays.indptr, arrays.slots, entries.indptr, entries.users, entries.positions)))
    items = np.ascontiguousarray(arrays.slot_items[begin:end])
    row = _Row(np.zeros(length, np.int32), np.zeros(length // 64 + 1, np.uint64))
    room = min(CELLS + length, task.pairs + length)
    cells = Cells(*(np.empty(room, np.int32) for _ in range(3)))
    first = task.first
    while first < task.last:
        first, found = _count_rows(X, items, begin, first, task.last, row, cells)
        if found:
            yield Cells(*(column[:found] for column in cells))


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
    X: _Histories, items: NDArray[np.int32], begin: int, first: int, last: int, row: _Row, cells: Cells
) -> tuple[int, int]:
    """Rows from `first` on while another one surely fits; gives the row to go on with and the cells filled."""
    found, slot = np.uint64(0), first
    while slot < last and found + np.uint64(len(items)) <= np.uint64(len(cells.counts)):
        pairs = 0
        for entry in range(X.starts[slot], X.starts[slot + 1]):
            user = X.users[entry]
            pairs += X.indptr[user + 1] - X.indptr[user] - X.positions[entry]
        place = slot - begin
        before = found
        if pairs >= len(items) - place:
            found = _dense_row(X, items, begin, slot, row, cells, found)
        elif pairs:
            found = _sparse_row(X, items, begin, slot, row, cells, found)
        cells.item_a[before:found] = items[place]
        slot += 1
    return slot, int(found)


# Indices are unsigned in these two: numba would otherwise look at every one for a negative, counted from the end.


@compiled
def _dense_row(
    X: _Histories, items: NDArray[np.int32], begin: int, slot: int, row: _Row, cells: Cells, found: np.uint64
) -> np.uint64:
    shift = np.uint32(begin)
    for entry in range(X.starts[slot], X.starts[slot + 1]):
        user = np.uint32(X.users[entry])
        start = X.indptr[user] + X.positions[entry]
        for pair in range(np.uint64(start), np.uint64(X.indptr[user + np.uint32(1)])):
            row.counts[np.uint32(X.slots[pair]) - shift] += 1
    for place in range(np.uint64(slot - begin), np.uint64(len(items))):
        count = row.counts[place]
        row.counts[place] = 0
        cells.item_b[found] = items[place]  # written in any case, and kept where it is not 0: no branch to guess
        cells.counts[found] = count
        found += np.uint64(count != 0)
    return found


@compiled
def _sparse_row(
    X: _Histories, items: NDArray[np.int32], begin: int, slot: int, row: _Row, cells: Cells, found: np.uint64
) -> np.uint64:
    shift = np.uint32(begin)
    for entry in range(X.starts[slot], X.starts[slot + 1]):
        user = np.uint32(X.users[entry])
        start = X.indptr[user] + X.positions[entry]
        for pair in range(np.uint64(start), np.uint64(X.indptr[user + np.uint32(1)])):
            place = np.uint32(X.slots[pair]) - shift
            row.counts[place] += 1
            row.touched[place >> np.uint32(6)] |= np.uint64(1) << np.uint64(place & np.uint32(63))
    for word in range(np.uint64(slot - begin) >> np.uint64(6), np.uint64(len(row.touched))):
        bits = row.touched[word]
        if bits:
            row.touched[word] = np.uint64(0)
        while bits:
            lowest = bits & (~bits + np.uint64(1))
            place = (word << np.uint64(6)) + _PLACE_OF_BIT[(lowest * _DE_BRUIJN) >> np.uint64(58)]
            bits ^= lowest
            cells.item_b[found] = items[place]
            cells.counts[found] = row.counts[place]
            row.counts[place] = 0
            found += np.uint64(1)
    return found


def _places_of_bits() -> NDArray[np.uint64]:
    """(64,) p by the upper 6 bits of 2^p * _DE_BRUIJN, which differ for all p (Leiserson, Prokop, Randall 1998)."""
    places = np.zeros(64, np.uint64)
    for place in range(64):
        places[(int(_DE_BRUIJN) << place) % 2**64 >> 58] = place
    return places


_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
_PLACE_OF_BIT = _places_of_bits()
