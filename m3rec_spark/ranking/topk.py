"""The k best items of every user, exactly: by score, ties by item (ascending ids, as the indices are).

`top_k` is for blocks of scores that are there already. Cost: one partition of the scores, O(B I); memory: twice them.
Notation: B users, I items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Lists:
    """Ranked items of B users, one list after the other."""

    offsets: NDArray[np.int64]
    """(B+1,) list of user b: offsets[b] to offsets[b+1]."""
    items: NDArray[np.int32]
    """Local items, the best first."""
    scores: NDArray[np.float32]


def top_k(scores: NDArray[np.float32], allowed: NDArray[np.bool_], k: int) -> Lists:
    """At most k allowed items of each user; fewer where fewer are allowed.

    Args:
        scores: (B, I), no NaN.
        allowed: (B, I) what may be in the list.
        k: 1 or more.

    >>> top_k(np.array([[0.5, 0.9, 0.5]], np.float32), np.array([[True, True, True]]), 2).items
    array([1, 0], dtype=int32)
    """
    cost = np.where(allowed, -scores, np.float32(np.inf))
    width = min(k, cost.shape[1])
    if not width:
        return Lists(np.zeros(len(scores) + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32))
    last = np.partition(cost, width - 1, axis=1)[:, width - 1 : width]
    rows, items = np.nonzero(allowed & (cost <= last))
    order = np.lexsort((items, cost[rows, items], rows))
    rows, items = rows[order], items[order]
    place = np.arange(len(rows)) - np.searchsorted(rows, rows)
    rows, items = rows[place < k], items[place < k]
    offsets = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=len(scores)))]).astype(np.int64)
    return Lists(offsets, items.astype(np.int32), scores[rows, items])
