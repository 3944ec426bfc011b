"""Why an item: the score split into one number for each item of the history and one for U-Loca; and who supports it.

The score is linear in the history once |u| is known. With n history items whose row of B_m is not empty, and v at
length one:
    score(u, j) = sum_i [ (B V)_i'v_j / (n |u|) + w_m B_ij ]  +  U-Loca_u'v_j / |u|        eq. 10-12, linear part
Cost: h k d for h history items and k items explained; the support reads the shoppers of both items, from X by item.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.errors import CorruptTableError
from m3rec_spark.ranking.scorers import M3RecScorer


@dataclass(frozen=True)
class Shares:
    """The parts of k scores; every row sums to its score, up to float32's rounding of the score."""

    history: NDArray[np.float64]
    """(k, h) of each item of the history, in its order."""
    local: NDArray[np.float64]
    """(k,) of U-Loca: what is the user's own beyond the history."""


def shares(
    scorer: M3RecScorer,
    arrays: MarketArrays,
    market: int,
    history: NDArray[np.intp],
    local: NDArray[np.float32],
    items: NDArray[np.intp],
) -> Shares:
    """The parts of a user's scores.

    Args:
        scorer: the model.
        arrays: its histories.
        market: of the user.
        history: (h,) local items, ascending and distinct.
        local: (d,) U-Loca, 0 for a user that training did not know.
        items: (k,) local items to explain.
    """
    smoothed, weights = scorer.cosine.parts(arrays, market, history)
    targets = scorer.cosine.unit_items(arrays, market)[items]
    count = max(float(weights.sum()), 1.0)
    length = float(np.linalg.norm(smoothed.sum(axis=0) / count + local))
    scale = 1 / length if length else 0.0
    by_item = targets @ smoothed.T * (scale / count)
    if scorer.ease is not None and (share := scorer.share(arrays, market)):
        by_item += float(share) * scorer.ease.pairs(arrays, market, history, items).T
    return Shares(by_item, targets @ local.astype(np.float64) * scale)


@dataclass(frozen=True)
class Shoppers:
    """X by item: who bought what, to count the shoppers that two items share. Rows are those of MarketArrays."""

    starts: NDArray[np.int64]
    """(S+1,) shoppers of slot s: rows[starts[s]:starts[s + 1]], ascending."""
    rows: NDArray[np.int32]

    def together(self, arrays: MarketArrays, item: int, other: int) -> dict[int, int]:
        """Market -> shoppers there who bought both global items: the cells of the markets' Grams, zeros left out."""
        found = {}
        for market in range(arrays.n_markets):
            slots = arrays.market_slots(market)
            at = np.searchsorted(arrays.slot_items[slots], [item, other])
            if (at < slots.stop - slots.start).all() and (arrays.slot_items[slots][at] == [item, other]).all():
                one, two = (self.rows[self.starts[s] : self.starts[s + 1]] for s in slots.start + at)
                count = len(np.intersect1d(one, two, assume_unique=True))
                if count:
                    found[market] = count
        return found


def open_shoppers(folder: Path) -> Shoppers:
    """X by item, mapped.

    Raises:
        CorruptTableError: a file is absent or damaged.
    """
    try:
        return Shoppers(*(np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in ("starts", "rows")))
    except (OSError, ValueError) as error:
        raise CorruptTableError(f"the shoppers by item in {folder} cannot be read ({error}): make it again") from None
