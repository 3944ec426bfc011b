"""A generated five-market shop in the proportions of the paper's Table 1, with planted structure.

Items belong to groups that are bought together and have Zipf popularity; every user shops in a few groups. Shared
items keep their group in every market, so what one market teaches about an item holds in the others: similarity mining
has something to find, and data-poor markets something to gain.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from m3rec_spark.data.arrays import MarketArrays

_NOISE = 0.12  # share of purchases outside the user's groups
_MIN_HISTORY = 5  # the public files are 5-cores
_OVERSAMPLE = 1.25  # draws per pair kept: a user draws some items twice
_REPEATED = 0.004  # share of pairs that the log holds twice, as the public files do


class _Market(NamedTuple):
    market_id: str
    users: int
    items: int
    shared: float  # share of its items that other markets sell too
    history: float  # mean pairs per user


_TABLE_1 = (
    _Market("M1", 7109, 2198, 0.7597, 6.8),
    _Market("M2", 2697, 1357, 0.8489, 7.3),
    _Market("M3", 3328, 1245, 0.8923, 7.0),
    _Market("M4", 5482, 2917, 0.7278, 7.5),
    _Market("M5", 6466, 9762, 0.2742, 11.9),
)
_SHARED_ITEMS = 3269  # items of Table 1's union that two or more markets sell


def generate_shop(scale: float, groups: int, seed: int) -> pa.Table:
    """Interactions (market_id, user_id, item_id: strings) of the shop; a few pairs occur twice, as in real logs.

    Args:
        scale: users and items as a share of Table 1, in (0, 10].
        groups: planted groups of items.
        seed: same seed, same table.
    """
    rng = np.random.default_rng(seed)
    n_shared = max(8, round(_SHARED_ITEMS * scale))
    shared_groups = rng.integers(groups, size=n_shared)
    tables, next_item = [], n_shared
    for market in _TABLE_1:
        n_items, n_users = max(8, round(market.items * scale)), max(8, round(market.users * scale))
        n_own = n_items - min(n_shared, round(n_items * market.shared))
        # popular shared items (low numbers) are sold in more markets
        chosen = np.argsort(np.arange(n_shared) / n_shared + rng.random(n_shared))[: n_items - n_own]
        items = np.concatenate([chosen, np.arange(next_item, next_item + n_own)])
        item_groups = np.concatenate([shared_groups[chosen], rng.integers(groups, size=n_own)])
        next_item += n_own
        users, picks = _purchases(rng, item_groups, n_users, market.history)
        tables.append(_as_table(market.market_id, users, items[picks]))
    return pa.concat_tables(tables)


def generate_arrays(
    markets: int, users: int, own_items: int, shared_items: int, history: float, groups: int, seed: int
) -> MarketArrays:
    """The same structure at any size, for benchmarks: markets of one size, as the arrays that prepare would publish.

    Args:
        markets: M.
        users: of each market.
        own_items: items that a market sells alone; they come after the shared ones.
        shared_items: items 0 .. that every market sells.
        history: mean pairs per user, about; at least 5.
        groups: planted groups of items.
        seed: same seed, same arrays.
    """
    rng = np.random.default_rng(seed)
    shared_groups = rng.integers(groups, size=shared_items)
    n_slots = shared_items + own_items  # of each market
    slots, lengths, items = [], [], []
    for market in range(markets):
        item_groups = np.concatenate([shared_groups, rng.integers(groups, size=own_items)])
        shoppers, picks = _purchases(rng, item_groups, users, history, repeated=0.0)
        slots.append((picks + market * n_slots).astype(np.int32))
        lengths.append(np.bincount(shoppers, minlength=users))
        items.append(np.r_[:shared_items, shared_items + market * own_items + np.arange(own_items)].astype(np.int32))
    all_slots, all_lengths = np.concatenate(slots), np.concatenate(lengths)
    return MarketArrays(
        indptr=np.concatenate([[0], np.cumsum(all_lengths)]).astype(np.int64),
        slots=all_slots,
        user_offsets=np.arange(markets + 1, dtype=np.int64) * users,
        slot_items=np.concatenate(items),
        slot_offsets=np.arange(markets + 1, dtype=np.int64) * n_slots,
        slot_counts=np.bincount(all_slots, minlength=markets * n_slots).astype(np.int32),
        n_items=shared_items + markets * own_items,
    )


def _purchases(
    rng: np.random.Generator,
    item_groups: NDArray[np.int64],
    n_users: int,
    mean_history: float,
    repeated: float = _REPEATED,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(user, position of the item) of every purchase in one market, user by user."""
    n_items = len(item_groups)
    order = np.argsort(item_groups, kind="stable")
    popularity = 1.0 / np.arange(1, n_items + 1) ** 0.7
    weight = rng.permutation(popularity)[order]
    cumulative = np.concatenate([[0.0], np.cumsum(weight)])
    first = np.searchsorted(item_groups[order], np.arange(item_groups.max() + 2))  # where each group begins

    mean_draws = mean_history * _OVERSAMPLE
    lengths = _MIN_HISTORY + rng.geometric(1.0 / (mean_draws - _MIN_HISTORY + 1.0), size=n_users) - 1
    users = np.repeat(np.arange(n_users), lengths)
    likes = rng.choice(item_groups, size=(n_users, 2))  # larger groups have more shoppers
    group = likes[users, (rng.random(len(users)) < 0.3).astype(np.int64)]
    low, high = cumulative[first[group]], cumulative[first[group + 1]]
    noise = rng.random(len(users)) < _NOISE
    low, high = np.where(noise, 0.0, low), np.where(noise, cumulative[-1], high)
    drawn = np.searchsorted(cumulative, low + rng.random(len(users)) * (high - low), side="right") - 1
    pairs = np.unique(users * n_items + order[np.clip(drawn, 0, n_items - 1)])
    pairs = np.concatenate([pairs, pairs[rng.random(len(pairs)) < repeated]])
    return pairs // n_items, pairs % n_items


def _as_table(market_id: str, users: NDArray[np.int64], items: NDArray[np.int64]) -> pa.Table:
    user_ids = np.char.add(f"{market_id}U", np.char.zfill(users.astype(str), 6))
    item_ids = np.char.add("P", np.char.zfill(items.astype(str), 6))
    columns = ([market_id] * len(users), user_ids.tolist(), item_ids.tolist())
    return pa.table([pa.array(c, pa.string()) for c in columns], names=["market_id", "user_id", "item_id"])
