"""X as random walks read it: by user, and by item with the weights of eq. 5 and a guide into them.

Item i's entries are his users u in ascending order, each a stretch of weight d_u - 1 (the user's other items) on the
line [0, deg(i)), deg(i) = sum of row i of A off the diagonal. So a point of the line is one pair (user of i, another
item of the user), and a uniform point is a step of P = D^-1 A. ("he" is the item: a user is a user of his.)

An entry is one int64: the end of its stretch, shifted left, over the number of its user. The guide (Chen and Asau 1974)
cuts the line of an item with c entries into c equal buckets and holds for each the first entry that reaches into it, so
that a point is found in O(1): 1 to 2 entries are looked at. Cost: two passes over X; 16 bytes a pair with X itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from m3rec_spark.compiled import compiled
from m3rec_spark.errors import CorruptTableError, DataError
from m3rec_spark.paths import replacing
from m3rec_spark.similarity.capacity import require

ITEM = np.dtype(
    [("first", np.int64), ("before", np.int64), ("weight", np.int64), ("total", np.int64), ("scale", np.float64)]
)
_BYTES_A_PAIR, _BYTES_AN_ITEM, _BYTES_A_USER = 16, ITEM.itemsize, 8


class WalkGraph(NamedTuple):
    """X of R users and n items, N pairs; or the part of some users, with the same numbers for items.

    Arrays are read-only, so that kernels see one type whether they lie in memory or in a file.
    """

    indptr: NDArray[np.int64]
    """(R+1,) user r has items[indptr[r]:indptr[r+1]]."""
    items: NDArray[np.int32]
    """(N,) distinct and ascending within a user."""
    rows: NDArray[np.void]
    """(n+1,) ITEM. first: the item's first entry; weight: deg of these users alone; before: of the users before them;
    total: of all users; scale: buckets of the guide a unit of weight. The last row holds `first` only."""
    entries: NDArray[np.int64]
    """(N,) by item, users ascending: end of the user's stretch << user_bits | user."""
    guide: NDArray[np.int32]
    """(N,) bucket b of an item: his entry guide[first + b], counted from his first."""
    self_loops: NDArray[np.bool_]
    """(1,) weight d_u and any item of the user; else d_u - 1 and any other item."""

    @property
    def n_items(self) -> int:
        """Items with and without neighbours: n."""
        return len(self.rows) - 1

    @property
    def user_bits(self) -> int:
        """Lower bits of an entry, which number the user."""
        return _bits(self.indptr)

    def degrees(self) -> NDArray[np.int64]:
        """(n,) the row sums of A (off the diagonal, or with it under self_loops): deg(v_i) of eq. 5."""
        return np.array(self.rows["total"][:-1])


def graph_bytes(n_pairs: int, n_items: int, n_users: int) -> int:
    """Bytes of the graph's arrays, in memory or in files."""
    return _BYTES_A_PAIR * n_pairs + _BYTES_AN_ITEM * n_items + _BYTES_A_USER * n_users


def plan(n_pairs: int, n_items: int) -> int:
    """Peak bytes of `build_graph`, checked before anything is allocated; `indptr`, which it does not copy, excluded.

    Raises:
        CapacityError: when they are more than the machine has to give.
    """
    needed = graph_bytes(n_pairs, n_items, 0) + 8 * n_items
    require(needed, f"the walk graph of {n_pairs:,} pairs", "use walks.engine=partitioned, or clean.min_item_users")
    return needed


def build_graph(
    indptr: NDArray[np.int64],
    items: NDArray[np.int32],
    n_items: int,
    self_loops: bool = False,
    before: NDArray[np.int64] | None = None,
    total: NDArray[np.int64] | None = None,
) -> WalkGraph:
    """The graph of users' histories: user r has the distinct items[indptr[r]:indptr[r + 1]], ascending.

    Args:
        indptr: (R+1,)
        items: (N,)
        n_items: n.
        self_loops: see WalkGraph.
        before: (n,) where these are only some of the users: the items' weights over the users that come before them.
        total: (n,) likewise: over all users.

    Raises:
        DataError: so many users and weights that they do not fit in one entry.
    """
    indptr, items = np.ascontiguousarray(indptr, np.int64), np.ascontiguousarray(items, np.int32)
    less = np.int64(0 if self_loops else 1)
    weights = item_weights(indptr, items, n_items, self_loops)
    _require_63_bits(len(indptr) - 1, int(weights.max(initial=0)))
    rows = np.zeros(n_items + 1, ITEM)
    rows["weight"][:-1] = weights
    rows["before"][:-1] = 0 if before is None else before
    rows["total"][:-1] = weights if total is None else total
    entries, guide = _fill(indptr, items, rows, less, _bits(indptr))
    return _read_only([indptr, items, rows, entries, guide, np.array([self_loops])])


def item_weights(
    indptr: NDArray[np.int64], items: NDArray[np.int32], n_items: int, self_loops: bool
) -> NDArray[np.int64]:
    """(n,) the items' degrees among these users."""
    less = np.int64(0 if self_loops else 1)
    return _sum_weights(np.asarray(indptr), np.asarray(items), n_items, less)


def save_graph(graph: WalkGraph, folder: Path) -> None:
    """Writes one .npy file an array, for workers to memory-map."""
    for name in WalkGraph._fields:
        save_array(folder / f"{name}.npy", getattr(graph, name))


def save_array(path: Path, array: NDArray[Any]) -> None:
    """A whole .npy file or none, so that a task may be run again, or twice at once."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        np.save(file, array)


def open_graph(folder: str | Path) -> WalkGraph:
    """The graph of `save_graph`, memory-mapped: the workers of a machine share one copy.

    Raises:
        CorruptTableError: a file is absent, cut short, or does not fit the others.
    """
    try:
        graph = _read_only([np.load(Path(folder) / f"{name}.npy", mmap_mode="r") for name in WalkGraph._fields])
    except (OSError, ValueError) as error:
        raise CorruptTableError(f"the walk graph in {folder} cannot be read ({error}): run the stage again") from None
    if not graph.indptr[-1] == len(graph.items) == len(graph.entries) == len(graph.guide):
        raise CorruptTableError(f"the walk graph in {folder} does not fit together: run the stage again")
    return graph


def _read_only(arrays: list[NDArray[Any]]) -> WalkGraph:
    views = [np.asarray(array)[:] for array in arrays]
    for view in views:
        view.flags.writeable = False
    return WalkGraph(*views)


def _bits(indptr: NDArray[np.int64]) -> int:
    return (len(indptr) - 1).bit_length()


def _require_63_bits(n_users: int, weight: int) -> None:
    if n_users.bit_length() + weight.bit_length() > 63:
        raise DataError(
            f"{n_users:,} users and an item of degree {weight:,} do not fit in the 63 bits of an entry: "
            "use walks.engine=partitioned, whose blocks have fewer users"
        )


@compiled
def _sum_weights(
    indptr: NDArray[np.int64], items: NDArray[np.int32], n_items: int, less: np.int64
) -> NDArray[np.int64]:
    weights = np.zeros(n_items, np.int64)
    for user in range(len(indptr) - 1):
        for k in range(indptr[user], indptr[user + 1]):
            weights[items[k]] += indptr[user + 1] - indptr[user] - less
    return weights


@compiled
def _fill(
    indptr: NDArray[np.int64], items: NDArray[np.int32], rows: NDArray[np.void], less: np.int64, bits: int
) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """Entries by a counting sort; then the guide. Completes `rows`."""
    for item in items:
        rows[item + 1].first += 1
    for item in range(len(rows) - 1):
        rows[item + 1].first += rows[item].first
    free, end = rows["first"].copy(), np.zeros(len(rows), np.int64)
    entries = np.empty(len(items), np.int64)
    for user in range(len(indptr) - 1):  # ascending, so the users of an item are
        for k in range(indptr[user], indptr[user + 1]):
            item = items[k]
            end[item] += indptr[user + 1] - indptr[user] - less
            entries[free[item]] = end[item] << bits | user
            free[item] += 1
    guide = np.zeros(len(items), np.int32)
    for item in range(len(rows) - 1):
        first, count = rows[item].first, rows[item + 1].first - rows[item].first
        rows[item].scale = count / max(rows[item].weight, 1)
        bucket = 0
        for k in range(count):
            last = np.int64(((entries[first + k] >> bits) - 1) * rows[item].scale)  # bucket of the stretch's last point
            while bucket <= last:
                guide[first + bucket] = k
                bucket += 1
    return entries, guide
