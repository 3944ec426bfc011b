"""B (paper, eq. 4) in the blocks that elimination by market leaves, on disk (markets.py).

C = (A + lambda I)^-1 for S_m, the items that market m alone sells, and O, the shared ones:
    C_OO,    C_mO = -H_m',    C_mm' = F_m H_m' (+ G_m^-1 where m = m');    B_ij = -C_ij / C_jj off the diagonal.
Cost of k rows of B by c columns: 2 k o c flops at most, 2 k o_m c within a market; memory k c + k o + o c numbers.

Notation: n items; o = |O|; s_m = |S_m|; o_m shared items that market m sells, O_m their places in O.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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
        """`sold` O_m (o_m,), `factor` F_m (s_m, o_m), `inverse` G_m^-1 (s_m, s_m), `response` H_m (o, s_m)."""
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
        """(rows, columns) of B for ascending items. Within a market it costs little: no block of another is read."""
        split = self.store.split()
        weights = np.zeros((len(rows), len(columns)))
        by_rows, by_columns = _groups(split, rows), _groups(split, columns)
        self._fill_border(weights, by_rows, by_columns)
        self._fill_own(weights, by_rows, by_columns)
        weights /= -self.store.open("diagonal")[columns]
        at = np.searchsorted(columns, rows)
        on = np.flatnonzero(np.append(columns, -1)[at] == rows)
        weights[on, at[on]] = 0.0
        return weights

    def _fill_border(self, C: Matrix, by_rows: list[_Group], by_columns: list[_Group]) -> None:
        """C_OO, C_mO = -H_m' and C_Om = -H_m."""
        for row in by_rows:
            for column in by_columns:
                if row.owner == column.owner == SHARED:
                    C[np.ix_(row.at, column.at)] = self.store.open("shared")[np.ix_(row.places, column.places)]
                elif column.owner == SHARED:
                    C[np.ix_(row.at, column.at)] = -self._response(row.owner, column.places, row.places).T
                elif row.owner == SHARED:
                    C[np.ix_(row.at, column.at)] = -self._response(column.owner, row.places, column.places)

    def _fill_own(self, C: Matrix, by_rows: list[_Group], by_columns: list[_Group]) -> None:
        """C_mm' = F_m H_m' + [m = m'] G_m^-1: the rows of all markets in one product per m'."""
        own_rows = [row for row in by_rows if row.owner >= 0]
        if not own_rows:
            return
        sold = [self.store.of_market(row.owner, "sold") for row in own_rows]
        reached = np.unique(np.concatenate(sold))  # other columns of F are 0
        F = np.zeros((sum(len(row.at) for row in own_rows), len(reached)))
        first = 0
        for row, shared in zip(own_rows, sold, strict=True):
            mine = np.arange(first, first := first + len(row.at))
            F[np.ix_(mine, np.searchsorted(reached, shared))] = self.store.of_market(row.owner, "factor")[row.places]
        at = np.concatenate([row.at for row in own_rows])
        for column in by_columns:
            if column.owner >= 0:
                C[np.ix_(at, column.at)] = product(F, self._response(column.owner, reached, column.places))
                for row in own_rows:
                    if row.owner == column.owner:
                        inverse = self.store.of_market(row.owner, "inverse")
                        C[np.ix_(row.at, column.at)] += inverse[np.ix_(row.places, column.places)]

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


def _groups(split: Split, items: NDArray[Any]) -> list[_Group]:
    """Groups of all owners but NOBODY, whose rows of C are 0 off the diagonal."""
    owner, place = split.owner[items], split.place[items]
    found = (np.flatnonzero(owner == one) for one in np.unique(owner[owner != NOBODY]))
    return [_Group(int(owner[at[0]]), at, place[at].astype(np.int64)) for at in found]
