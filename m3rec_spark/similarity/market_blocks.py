"""B (paper, eq. 4) in the blocks that elimination by market leaves, on disk (markets.py).

C = (A + lambda I)^-1 for S_m, the items that market m alone sells, and O, the shared ones:
    C_OO,    C_mO = -H_m',    C_mm,    C_mm' = F_m H_m' for m != m';    B_ij = -C_ij / C_jj off the diagonal.
Cost of k rows of B by c columns: 2 k o c flops at most, none within a market; memory k c + k o + o c numbers.

Notation: n items; o = |O|; s_m = |S_m|; o_m shared items that market m sells, O_m their places in O.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3rec_spark.compiled import compiled
from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.paths import replacing
from m3rec_spark.similarity.dense import Matrix, product

SHARED, NOBODY = -1, -2  # owners of an item that are no market
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Who owns an item: the market that alone sells it, several (SHARED), or NOBODY, as no user bought it.

    An item counts as sold where a train user bought it; elsewhere its row of A_m is 0.
    """

    owner: NDArray[np.int32]
    """(n,)"""
    place: NDArray[np.int32]
    """(n,) its place among the items of its owner, which are in ascending order."""

    def items(self, owner: int) -> Indices:
        """All items of an owner, ascending: S_m, or O for SHARED."""
        return np.flatnonzero(self.owner == owner)


def split_items(arrays: MarketArrays) -> Split:
    """The owners of the items."""
    bought = np.asarray(arrays.slot_counts) > 0
    items = arrays.slot_items[bought]
    markets = np.repeat(np.arange(arrays.n_markets, dtype=np.int32), np.diff(arrays.slot_offsets))[bought]
    owner = np.full(arrays.n_items, NOBODY, np.int32)
    owner[items] = markets
    owner[np.bincount(items, minlength=arrays.n_items) > 1] = SHARED
    place = np.empty(arrays.n_items, np.int32)
    for one in range(NOBODY, arrays.n_markets):
        mine = owner == one
        place[mine] = np.arange(mine.sum())
    return Split(owner, place)


@dataclass(frozen=True)
class Store:
    """The files of an elimination, on a path that all workers share; a name has one content, however often written."""

    folder: str

    def save(self, name: str, array: NDArray[Any]) -> None:
        """Writes an array whole, or not at all."""
        path = Path(self.folder) / f"{name}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.save(file, array)

    def open(self, name: str) -> NDArray[Any]:
        """An array, memory-mapped."""
        return np.asarray(np.load(Path(self.folder) / f"{name}.npy", mmap_mode="r"))

    def of_market(self, market: int, name: str) -> NDArray[Any]:
        """`sold` O_m (o_m,), `factor` F_m (s_m, o_m), `response` H_m (o, s_m), `own` C_mm (s_m, s_m)."""
        return self.open(f"market-{market:05d}/{name}")

    def save_of_market(self, market: int, name: str, array: NDArray[Any]) -> None:
        """As `save`."""
        self.save(f"market-{market:05d}/{name}", array)

    def remove_of_market(self, market: int, *names: str) -> None:
        """Removes files of a market."""
        for name in names:
            (Path(self.folder) / f"market-{market:05d}" / f"{name}.npy").unlink()

    def save_split(self, split: Split) -> None:
        """The owners, for `split`."""
        self.save("owner", split.owner)
        self.save("place", split.place)

    def split(self) -> Split:
        """The owners."""
        return Split(self.open("owner"), self.open("place"))


@dataclass(frozen=True)
class EliminatedWeights:
    """B of eq. 4 in the blocks of C; picklable into a Spark task (Weights)."""

    store: Store
    n_items: int

    def rows(self, first: int, last: int) -> Matrix:
        """(last - first, n) rows of B; the diagonal is exactly 0."""
        return self.block(np.arange(first, last), np.arange(self.n_items))

    def block(self, rows: NDArray[Any], columns: NDArray[Any]) -> Matrix:
        """(rows, columns) of B for ascending items. Within a market its blocks are only read."""
        split = self.store.split()
        weights = np.zeros((len(rows), len(columns)))
        by_rows, by_columns = _groups(split, rows), _groups(split, columns)
        self._fill_border(weights, by_rows, by_columns)
        self._fill_own(weights, by_rows, by_columns)
        weights *= -1.0 / self.store.open("diagonal")[columns]
        at = np.searchsorted(columns, rows)
        on = np.flatnonzero(np.append(columns, -1)[at] == rows)
        weights[on, at[on]] = 0.0
        return weights

    def _fill_border(self, C: Matrix, by_rows: list[_Group], by_columns: list[_Group]) -> None:
        """C_OO, C_mO = -H_m' and C_Om = -H_m."""
        for row in by_rows:
            for column in by_columns:
                if row.owner == column.owner == SHARED:
                    place(C, row.at, column.at, self.store.open("shared"), row.places, column.places, 1.0)
                elif column.owner == SHARED:
                    H = self.store.of_market(row.owner, "response")
                    place(C, row.at, column.at, H.T, row.places, column.places, -1.0)
                elif row.owner == SHARED:
                    H = self.store.of_market(column.owner, "response")
                    place(C, row.at, column.at, H, row.places, column.places, -1.0)

    def _fill_own(self, C: Matrix, by_rows: list[_Group], by_columns: list[_Group]) -> None:
        """C_mm, and C_mm' = F_m H_m': the rows of all other markets in one product per m'."""
        for column in by_columns:
            if column.owner < 0:
                continue
            others = [row for row in by_rows if row.owner not in (SHARED, column.owner)]
            if others:
                F, reached = self._factors(others)
                across = product(F, self._response(column.owner, reached, column.places))
                at = np.concatenate([row.at for row in others])
                place(C, at, column.at, across, np.arange(len(at)), np.arange(len(column.at)), 1.0)
            for row in by_rows:
                if row.owner == column.owner:
                    own = self.store.of_market(row.owner, "own")
                    place(C, row.at, column.at, own, row.places, column.places, 1.0)

    def _factors(self, rows: list[_Group]) -> tuple[Matrix, Indices]:
        """Rows of F below each other; and which of O its columns are, as all others are 0."""
        sold = [self.store.of_market(row.owner, "sold") for row in rows]
        reached, first = np.unique(np.concatenate(sold)), 0
        F = np.zeros((sum(len(row.at) for row in rows), len(reached)))
        for row, shared in zip(rows, sold, strict=True):
            mine = np.arange(first, first := first + len(row.at))
            of_market = self.store.of_market(row.owner, "factor")
            place(F, mine, np.searchsorted(reached, shared), of_market, row.places, np.arange(len(shared)), 1.0)
        return F, reached

    def _response(self, market: int, shared: Indices, own: Indices) -> Matrix:
        """H_m[shared, own], mapped where it is the whole."""
        H = self.store.of_market(market, "response")
        columns = H if len(own) == H.shape[1] else H.T[own].T
        return columns if len(shared) == len(H) else columns[shared]


@dataclass(frozen=True)
class _Group:
    """Those of some items that have one owner."""

    owner: int
    at: Indices
    """Where they are among those items."""
    places: Indices
    """Their places among their owner's."""


@compiled
def place(
    C: Matrix, rows: Indices, columns: Indices, block: Matrix, its_rows: Indices, its_columns: Indices, sign: float
) -> None:
    """C[rows, columns] += sign block[its_rows, its_columns], by tiles, as block may lie in either order."""
    for top in range(0, len(rows), 64):
        for left in range(0, len(columns), 64):
            for i in range(top, min(top + 64, len(rows))):
                for j in range(left, min(left + 64, len(columns))):
                    C[rows[i], columns[j]] += sign * block[its_rows[i], its_columns[j]]


def _groups(split: Split, items: NDArray[Any]) -> list[_Group]:
    """Groups of all owners but NOBODY, whose rows of C are 0 off the diagonal."""
    owner, place = split.owner[items], split.place[items]
    found = (np.flatnonzero(owner == one) for one in np.unique(owner[owner != NOBODY]))
    return [_Group(int(owner[at[0]]), at, place[at].astype(np.int64)) for at in found]
