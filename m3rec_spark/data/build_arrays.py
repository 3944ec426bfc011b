"""The training histories as flat arrays, out of the published tables (data.arrays has what they hold).

Cost: one sort of the N train pairs; 12 bytes a pair at peak, on the driver.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from numpy.typing import NDArray

from m3rec_spark.data.arrays import MarketArrays, offsets
from m3rec_spark.errors import CorruptTableError
from m3rec_spark.tables import Workspace

log = logging.getLogger(__name__)

_CHUNK = 1 << 20  # pairs decoded at once


def build_arrays(workspace: Workspace) -> MarketArrays:
    """The arrays of the published interactions, market_items, users, markets and items.

    Raises:
        CorruptTableError: the tables do not fit each other.
    """
    n_markets, n_items = _rows(workspace, "markets"), _rows(workspace, "items")
    users = np.zeros(n_markets, np.int64)
    for (market,) in _columns(workspace, "users", ["market"]):
        users += np.bincount(_within(market, n_markets, "users.market"), minlength=n_markets)
    user_offsets = offsets(users)
    slot_items, slot_offsets, slot_counts = _market_items(workspace, n_markets, n_items)
    slot_keys = np.repeat(np.arange(n_markets), np.diff(slot_offsets)) * n_items + slot_items  # ascending

    keys = np.empty(int(slot_counts.sum(dtype=np.int64)), np.int64)  # row * S + slot
    log.info("arrays: %d train pairs, %.0f MB on the driver", len(keys), 12e-6 * len(keys))
    end = 0
    for market, user, item in _columns(
        workspace, "interactions", ["market", "user", "item"], ds.field("split") == "train"
    ):
        _within(market, n_markets, "interactions.market")
        _within(user, users[market], "interactions.user")
        slot = np.searchsorted(slot_keys, wanted := market * np.int64(n_items) + item)
        if end + len(slot) > len(keys) or not np.array_equal(slot_keys[_within(slot, len(slot_keys), "item")], wanted):
            raise CorruptTableError("interactions has train pairs that market_items does not count: rerun prepare")
        keys[end : end + len(slot)] = (user_offsets[market] + user) * len(slot_items) + slot
        end += len(slot)
    if end < len(keys):
        raise CorruptTableError(f"market_items counts {len(keys)} train pairs, interactions has {end}: rerun prepare")
    return _from_keys(keys, user_offsets, slot_items, slot_offsets, slot_counts, n_items)


def _from_keys(
    keys: NDArray[np.int64],
    user_offsets: NDArray[np.int64],
    slot_items: NDArray[np.int32],
    slot_offsets: NDArray[np.int64],
    slot_counts: NDArray[np.int32],
    n_items: int,
) -> MarketArrays:
    """CSR of the pairs `row * S + slot`; sorts `keys` in place."""
    n_slots = len(slot_items)
    keys.sort()
    indptr = np.searchsorted(keys, np.arange(user_offsets[-1] + 1) * n_slots)
    slots = np.empty(len(keys), np.int32)
    for start in range(0, len(keys), _CHUNK):
        slots[start : start + _CHUNK] = keys[start : start + _CHUNK] % n_slots
    if (keys[1:] == keys[:-1]).any() or not np.array_equal(np.bincount(slots, minlength=n_slots), slot_counts):
        raise CorruptTableError("interactions repeats train pairs, or market_items counts others: rerun prepare")
    return MarketArrays(indptr, slots, user_offsets, slot_items, slot_offsets, slot_counts, n_items)


def _market_items(
    workspace: Workspace, n_markets: int, n_items: int
) -> tuple[NDArray[np.int32], NDArray[np.int64], NDArray[np.int32]]:
    """(slot_items, slot_offsets, slot_counts); checks that `local` numbers a market's items in ascending order."""
    table = workspace.read_arrow("market_items", ["market", "item", "local", "train_count"])
    table = table.sort_by([("market", "ascending"), ("item", "ascending")])
    market, item, local, count = (table[name].to_numpy() for name in table.column_names)
    _within(item, n_items, "market_items.item")
    begins = offsets(np.bincount(_within(market, n_markets, "market_items.market"), minlength=n_markets))
    if not np.array_equal(local, np.arange(len(market)) - begins[market]):
        raise CorruptTableError(
            "market_items.local is not the ascending number of the item in its market: rerun prepare"
        )
    return item, begins, count


def _within(index: NDArray[Any], size: int | NDArray[np.int64], name: str) -> NDArray[Any]:
    """`index`, if all of it is in 0..size-1."""
    if ((index < 0) | (index >= size)).any():
        raise CorruptTableError(f"{name} holds an index outside 0..{np.max(size) - 1}: rerun prepare")
    return index


def _rows(workspace: Workspace, name: str) -> int:
    return int(ds.dataset(workspace.folder(name), format="parquet").count_rows())


def _columns(
    workspace: Workspace, name: str, columns: list[str], filter: ds.Expression | None = None
) -> Iterator[list[NDArray[np.int32]]]:
    """The columns of a published table, batch by batch."""
    batch: pa.RecordBatch
    for batch in ds.dataset(workspace.folder(name), format="parquet").to_batches(columns=columns, filter=filter):
        yield [batch.column(i).to_numpy() for i in range(len(columns))]
