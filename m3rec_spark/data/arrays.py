"""The training histories of all markets as flat arrays, memory-mapped by training, ranking and Spark workers alike.

Words (docs/data_model.md): a *row* is a user, `user_offsets[market] + user`; a *slot* is an item in a market,
`slot_offsets[market] + local`. A pair is (row, slot); CSR by row. Cost of building: one sort of the N train pairs;
12 bytes a pair at peak, on the driver.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from m3rec_spark.errors import CorruptTableError

log = logging.getLogger(__name__)

_ARRAYS = ("indptr", "slots", "user_offsets", "slot_items", "slot_offsets", "slot_counts")
_HEADER = "arrays.json"
_CHUNK = 1 << 20  # pairs decoded at once


@dataclass(frozen=True)
class MarketArrays:
    """Train histories and items of M markets, R rows, S slots and N train pairs."""

    indptr: NDArray[np.int64]
    """(R+1,) history of row r: slots[indptr[r]:indptr[r+1]], ascending."""
    slots: NDArray[np.int32]
    """(N,)"""
    user_offsets: NDArray[np.int64]
    """(M+1,) rows of market m: user_offsets[m] to user_offsets[m+1]."""
    slot_items: NDArray[np.int32]
    """(S,) global item of each slot; ascending within a market."""
    slot_offsets: NDArray[np.int64]
    """(M+1,) slots of market m: slot_offsets[m] to slot_offsets[m+1]."""
    slot_counts: NDArray[np.int32]
    """(S,) train pairs of the item in the market; 0: cold."""
    n_items: int
    """Global items."""

    @property
    def n_markets(self) -> int:
        """M."""
        return len(self.user_offsets) - 1

    @property
    def n_rows(self) -> int:
        """R, users of all markets."""
        return len(self.indptr) - 1

    @property
    def items(self) -> NDArray[np.int32]:
        """(N,) global item of every train pair."""
        return self.slot_items[self.slots]

    def market_slots(self, market: int) -> slice:
        """The market's slots, as a slice of the arrays by slot."""
        return slice(int(self.slot_offsets[market]), int(self.slot_offsets[market + 1]))

    def history(self, market: int, users: NDArray[np.int32] | None = None) -> sp.csr_matrix:
        """(users of the market, its items) float32 ones; local columns. users: these only, in this order."""
        first, last = (int(end) for end in self.user_offsets[market : market + 2])
        rows = np.arange(first, last) if users is None else first + users.astype(np.int64)
        starts, lengths = self.indptr[rows], self.indptr[rows + 1] - self.indptr[rows]
        indptr = offsets(lengths)
        pairs = np.repeat(starts - indptr[:-1], lengths) + np.arange(indptr[-1])
        slots = self.market_slots(market)
        local = self.slots[pairs] - np.int32(slots.start)
        shape = (len(rows), slots.stop - slots.start)
        return sp.csr_matrix((np.ones(len(local), np.float32), local, indptr), shape=shape)


def save_arrays(arrays: MarketArrays, folder: Path) -> None:
    """Writes the arrays as .npy files and arrays.json into an existing folder."""
    for name in _ARRAYS:
        np.save(folder / f"{name}.npy", getattr(arrays, name))
    header = {"n_items": arrays.n_items, "shapes": {name: getattr(arrays, name).shape for name in _ARRAYS}}
    (folder / _HEADER).write_text(json.dumps(header), encoding="utf-8")


def open_arrays(folder: Path) -> MarketArrays:
    """The saved arrays, memory-mapped: processes of one machine share the pages.

    Raises:
        CorruptTableError: a file is absent or not what arrays.json says.
    """
    try:
        header = json.loads((folder / _HEADER).read_text(encoding="utf-8"))
        arrays = {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in _ARRAYS}
        if {name: list(array.shape) for name, array in arrays.items()} != header["shapes"]:
            raise ValueError("the shapes of the arrays are not those of arrays.json")
        return MarketArrays(**arrays, n_items=header["n_items"])
    except (OSError, ValueError, KeyError) as error:
        raise CorruptTableError(
            f"the arrays in {folder} cannot be read ({error}): rerun prepare with --force"
        ) from None


def offsets(counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """(n+1,) where each of n parts begins, and the end."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)])
