"""Small shops for the tests of the models."""

from __future__ import annotations

import numpy as np
import torch

from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.models.pairs import Pairs

# Market 0: users 0, 1; items 0, 1, 2 (slots 0-2). Market 1: users 0, 1, 2; items 1, 2, 3 (slots 3-5); item 3 is cold.
SMALL = MarketArrays(
    indptr=np.array([0, 2, 3, 4, 6, 6]),
    slots=np.array([0, 1, 2, 3, 3, 4], np.int32),
    user_offsets=np.array([0, 2, 5]),
    slot_items=np.array([0, 1, 2, 1, 2, 3], np.int32),
    slot_offsets=np.array([0, 3, 6]),
    slot_counts=np.array([1, 1, 1, 2, 1, 0], np.int32),
    n_items=4,
)


def two_tastes(users: int = 12, items: int = 6) -> tuple[MarketArrays, list[tuple[int, int, int]]]:
    """Two markets with the same 2 x `items` items; half of the users buy of the first ones, half of the others.

    Every user leaves one item of his kind out: (market, row, slot) of each.
    """
    rows, held = [], []
    for market in range(2):
        first = market * 2 * items
        for user in range(users):
            kind = range(first, first + items) if user % 2 else range(first + items, first + 2 * items)
            out = kind[user // 2 % items]
            rows.append([slot for slot in kind if slot != out])
            held.append((market, market * users + user, out))
    slots = np.concatenate(rows).astype(np.int32)
    arrays = MarketArrays(
        indptr=np.cumsum([0, *map(len, rows)]),
        slots=slots,
        user_offsets=np.array([0, users, 2 * users]),
        slot_items=np.tile(np.arange(2 * items, dtype=np.int32), 2),
        slot_offsets=np.array([0, 2 * items, 4 * items]),
        slot_counts=np.bincount(slots, minlength=4 * items).astype(np.int32),
        n_items=2 * items,
    )
    return arrays, held


def batch(rows: list[int], positives: list[int], sizes: list[int], negatives: list[list[list[int]]]) -> Pairs:
    """A batch with own negatives; no histories, which these models do not look at."""
    none = torch.zeros(len(rows), dtype=torch.int64)
    drawn = tuple(torch.tensor(part) for part in negatives)
    return Pairs(torch.tensor(rows), torch.tensor(positives), none, none, sizes, drawn)
