"""Similar items market by market, and how much the markets share: what the model knows of an item, to look at."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.errors import UsageError, did_you_mean
from m3rec_spark.ranking.recommender import Recommender
from m3rec_spark.ranking.topk import top_k


@dataclass(frozen=True)
class Similar:
    """An item like another one in a market."""

    market: str
    rank: int
    item: str
    cosine: float
    """Of their vectors V_m, eq. 10."""
    shoppers: dict[str, int]
    """Market -> shoppers there who bought both."""


def similar_items(served: Recommender, item: str, k: int = 10) -> list[Similar]:
    """The k items most like an item in every market that sells it, by V_m; ties by item.

    Raises:
        UsageError: the item is unknown.
    """
    which = served.items.find(item)
    if which is None:
        raise UsageError(f"item '{item}' is unknown.{did_you_mean(item, served.items)}")
    arrays, found = served.arrays, list[Similar]()
    for market, name in enumerate(served.markets):
        slots = arrays.market_slots(market)
        own, sold = arrays.slot_items[slots], arrays.slot_counts[slots] > 0
        place = int(np.searchsorted(own, which))
        if place == len(own) or own[place] != which:
            continue
        vectors = served.scorer.cosine.unit_items(arrays, market)
        cosines = (vectors @ vectors[place]).astype(np.float32)[None]
        allowed = (sold & (own != which))[None]
        lists = top_k(cosines, allowed, k)
        for rank, (other, cosine) in enumerate(zip(own[lists.items], lists.scores, strict=True), start=1):
            both = served.bought_both(which, int(other))
            found.append(Similar(name, rank, served.items[int(other)], float(cosine), both))
    return found


def shared_items(arrays: MarketArrays) -> NDArray[np.float64]:
    """(M, M): the share of the row market's items that the column market sells too. Sold: a train user bought it."""
    sold = np.zeros((arrays.n_markets, arrays.n_items))
    for market in range(arrays.n_markets):
        slots = arrays.market_slots(market)
        sold[market, arrays.slot_items[slots][arrays.slot_counts[slots] > 0]] = 1
    shared: NDArray[np.float64] = sold @ sold.T
    share: NDArray[np.float64] = shared / np.maximum(np.diag(shared)[:, None], 1)
    return share
