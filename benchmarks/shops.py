"""What a benchmark needs of a generated shop beyond its arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.tables import Workspace, arrow_schema


def publish(arrays: MarketArrays, root: Path) -> Workspace:
    """The tables that prepare would have published."""
    workspace = Workspace(root)
    rows = np.repeat(np.arange(arrays.n_rows), np.diff(arrays.indptr))
    market_of_row = np.repeat(np.arange(arrays.n_markets), np.diff(arrays.user_offsets))
    market_of_slot = np.repeat(np.arange(arrays.n_markets), np.diff(arrays.slot_offsets))
    local = np.arange(len(arrays.slot_items)) - arrays.slot_offsets[market_of_slot]
    users = np.arange(arrays.n_rows) - arrays.user_offsets[market_of_row]
    split = pa.DictionaryArray.from_arrays(np.zeros(len(rows), np.int32), ["train"]).cast(pa.string())
    zeros = np.zeros(arrays.n_markets, np.int64)
    tables = {
        "interactions": [market_of_row[rows], users[rows], arrays.items, pa.nulls(len(rows), pa.int64()), split],
        "market_items": [market_of_slot, arrays.slot_items, local, arrays.slot_counts, np.ones(len(local))],
        "users": [market_of_row, users, pa.array(users).cast(pa.string())],
        "markets": [np.arange(arrays.n_markets), pa.array(np.arange(arrays.n_markets)).cast(pa.string())] + [zeros] * 7,
        "items": [np.arange(arrays.n_items), pa.array(np.arange(arrays.n_items)).cast(pa.string()),
                  np.ones(arrays.n_items)],
    }  # fmt: skip
    for name, columns in tables.items():
        schema = arrow_schema(name)
        arrow = [pa.array(column).cast(field.type) for column, field in zip(columns, schema, strict=True)]
        workspace.write_arrow(pa.Table.from_arrays(arrow, schema=schema), name, "benchmark")
    return workspace


def with_long_history(arrays: MarketArrays, items: int) -> MarketArrays:
    """One market with one more user, who has the first `items` items."""
    return MarketArrays(
        indptr=np.r_[arrays.indptr, arrays.indptr[-1] + items],
        slots=np.r_[arrays.slots, np.arange(items, dtype=np.int32)],
        user_offsets=arrays.user_offsets + np.array([0, 1]),
        slot_items=arrays.slot_items,
        slot_offsets=arrays.slot_offsets,
        slot_counts=arrays.slot_counts + (np.arange(len(arrays.slot_items)) < items).astype(np.int32),
        n_items=arrays.n_items,
    )
