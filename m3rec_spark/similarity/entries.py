"""X by column: who has an item, and where in the user's history it stands.

A CSR of users (row r: columns[indptr[r]:indptr[r+1]], ascending) is turned into its transpose with positions, by a
counting sort: one pass counts, one fills. Cost: O(N + C) time and 8 bytes an entry, N pairs and C columns. The position
makes "the items of this user from here on" one slice of the CSR: the upper half of X'X needs no comparison.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from m3rec_spark.compiled import compiled
from m3rec_spark.errors import CorruptTableError, DataError

_ARRAYS = ("indptr", "users", "positions")
_MAX_USERS = 2**31 - 1


@dataclass(frozen=True)
class Entries:
    """The N pairs of X by column (a slot or an item)."""

    indptr: NDArray[np.int64]
    """(C+1,) entries of column c: indptr[c] to indptr[c+1]."""
    users: NDArray[np.int32]
    """(N,) row of the user; ascending within a column."""
    positions: NDArray[np.int32]
    """(N,) place of the column in that user's history: columns[indptr of the CSR[user] + position] is this one."""


def bytes_needed(n_pairs: int, n_columns: int) -> int:
    """Peak memory of `transpose`, the CSR excluded: 8 bytes an entry, and where each column begins, three times."""
    return 8 * n_pairs + 24 * n_columns


def transpose(indptr: NDArray[np.int64], columns: NDArray[Any], n_columns: int) -> Entries:
    """The entries of a CSR by column.

    Args:
        indptr: (R+1,) offsets of the users' histories.
        columns: (N,) int32 columns of the histories.
        n_columns: C.

    Raises:
        DataError: more than 2^31 - 1 users, whose rows do not fit in int32.
        ValueError: a column outside 0..C-1.
    """
    if len(indptr) - 1 > _MAX_USERS:
        raise DataError(
            f"{len(indptr) - 1:,} users; their rows are numbered in int32, so at most {_MAX_USERS:,} fit: "
            "split the markets over several workspaces"
        )
    if len(columns) and not 0 <= columns.min() <= columns.max() < n_columns:
        raise ValueError(f"columns hold {columns.min()}..{columns.max()}, outside 0..{n_columns - 1}")
    return Entries(*_counting_sort(np.asarray(indptr), np.asarray(columns), n_columns))


def save_entries(entries: Entries, folder: Path) -> None:
    """Writes the entries as .npy files into an existing folder."""
    for name in _ARRAYS:
        np.save(folder / f"entries_{name}.npy", getattr(entries, name))


def open_entries(folder: Path) -> Entries:
    """The saved entries, memory-mapped: processes of one machine share the pages.

    Raises:
        CorruptTableError: a file is absent, cut short, or does not fit the others.
    """
    try:
        arrays = (np.asarray(np.load(folder / f"entries_{name}.npy", mmap_mode="r")) for name in _ARRAYS)
        entries = Entries(*arrays)
    except (OSError, ValueError) as error:
        raise CorruptTableError(f"the entries in {folder} cannot be read ({error}): run the stage again") from None
    if not entries.indptr[-1] == len(entries.users) == len(entries.positions):
        raise CorruptTableError(f"the entries in {folder} do not fit each other: run the stage again")
    return entries


@compiled
def _counting_sort(
    indptr: NDArray[np.int64], columns: NDArray[np.int32], n_columns: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int32]]:
    ends = np.zeros(n_columns + 1, np.int64)
    for column in columns:
        ends[column + 1] += 1
    for column in range(n_columns):
        ends[column + 1] += ends[column]
    next_free = ends[:-1].copy()
    users = np.empty(len(columns), np.int32)
    positions = np.empty(len(columns), np.int32)
    for user in range(len(indptr) - 1):  # ascending, so the users of a column are
        for k in range(indptr[user], indptr[user + 1]):
            slot = next_free[columns[k]]
            users[slot] = user
            positions[slot] = k - indptr[user]
            next_free[columns[k]] = slot + 1
    return ends, users, positions
