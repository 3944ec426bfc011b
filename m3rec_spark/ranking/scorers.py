"""The models as functions (market, users) -> scores of all items of the market, from published arrays.

A scorer holds a name and paths only, so that it pickles into a Spark task; the arrays are memory-mapped there, shared
by the workers of a machine. Scores of a user do not depend on who else is in the block, down to the bit.
Notation: B users of the block, I items of the market, d dimension, h pairs in a user's history.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.schema import CorruptTableError
from m3rec_spark.similarity.weights import MarketRows, market_rows

Scores = NDArray[np.float32]


class Scorer(Protocol):
    """What the ranking needs of a model."""

    @property
    def name(self) -> str:
        """As in the column `model` of RANKS and METRICS."""

    def score(self, arrays: MarketArrays, market: int, users: NDArray[np.int32]) -> Scores:
        """(B, I) scores of the market's items, in local order, for users by their index in the market."""


@dataclass(frozen=True)
class PopularityScorer:
    """The item's train count in the market, the same for every user."""

    name: str = "popularity"

    def score(self, arrays: MarketArrays, market: int, users: NDArray[np.int32]) -> Scores:
        """See Scorer. Counts are exact below 2^24."""
        counts = arrays.slot_counts[arrays.market_slots(market)].astype(np.float32)
        return np.broadcast_to(counts, (len(users), len(counts)))


@dataclass(frozen=True)
class EaseScorer:
    """x B, eq. 3-4: the sum of the rows of B that belong to the user's history.

    Time B h I. Memory: one block of B, (items in the histories of the block) x I float32, at most 4 I^2 bytes.
    """

    folder: str
    """The table `ease`: B within each market."""
    name: str = "ease"

    def score(self, arrays: MarketArrays, market: int, users: NDArray[np.int32]) -> Scores:
        """See Scorer."""
        slots = arrays.market_slots(market)
        rows = _market_rows(self.folder, market, slots.stop - slots.start)
        history = arrays.history(market, users)
        bought, columns = np.unique(history.indices, return_inverse=True)
        x = sp.csr_matrix((history.data, columns, history.indptr), shape=(len(users), len(bought)))
        scores = x @ rows(bought)
        return np.asarray(scores.toarray() if sp.issparse(scores) else scores)


@dataclass(frozen=True)
class CosineScorer:
    """cos(u, v), eq. 10-12: u the mean of (B V)_i over the history, plus U-Loca.

    Time B I d. Computed in float64 and rounded: BLAS sums in another order for another B, and the rounding hides that.
    """

    folder: str
    """The table `model`: item_vectors, history_vectors, history_weights by slot, user_vectors by row."""
    name: str = "m3rec_cosine"

    def score(self, arrays: MarketArrays, market: int, users: NDArray[np.int32]) -> Scores:
        """See Scorer."""
        slots, n_slots = arrays.market_slots(market), len(arrays.slot_items)
        items, smoothed = (
            _mapped(self.folder, name, (n_slots, None))[slots] for name in ("item_vectors", "history_vectors")
        )
        weights = _mapped(self.folder, "history_weights", (n_slots,))[slots]
        local = _mapped(self.folder, "user_vectors", (arrays.n_rows, None))[arrays.user_offsets[market] + users]
        history = arrays.history(market, users).astype(np.float64)
        total = (history @ weights)[:, None]  # history items whose row of B_m is not empty
        vectors = np.divide(history @ smoothed, total, out=np.zeros(local.shape), where=total != 0) + local
        return (_unit(vectors) @ _unit(items.astype(np.float64)).T).astype(np.float32)


@dataclass(frozen=True)
class M3RecScorer:
    """cos(u, v) + w_m (x B)_item: the market model with the market's share of EASE, as `evaluation.blend` chose it."""

    cosine: CosineScorer
    ease: EaseScorer | None
    """None for a model that was trained without EASE's share: w_m = 0 everywhere."""
    name: str = "m3rec"

    def score(self, arrays: MarketArrays, market: int, users: NDArray[np.int32]) -> Scores:
        """See Scorer."""
        scores = self.cosine.score(arrays, market, users)
        weight = _mapped(self.cosine.folder, "ease_weights", (arrays.n_markets,))[market] if self.ease else 0
        if not weight or self.ease is None:
            return scores
        return np.asarray(scores + np.float32(weight) * self.ease.score(arrays, market, users))


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows divided by their length; a zero row stays zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length != 0)


@functools.lru_cache(maxsize=16)
def _market_rows(folder: str, market: int, n_items: int) -> MarketRows:
    """B within a market, opened once per process."""
    try:
        rows = market_rows(folder, market)
        found = rows(np.array([], np.int64)).shape[1]
        if found != n_items:
            raise ValueError(f"{found} items in market {market}, this workspace has {n_items}")
    except (OSError, ValueError) as error:
        raise CorruptTableError(f"table ease in {folder} cannot be read ({error}): run pretrain --force") from None
    return rows


@functools.lru_cache(maxsize=16)
def _mapped(folder: str, name: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """A published array, mapped once per process. None in shape: any size."""
    path = Path(folder) / f"{name}.npy"
    try:
        array = np.asarray(np.load(path, mmap_mode="r"))
    except (OSError, ValueError) as error:
        raise CorruptTableError(f"{path} cannot be read ({error}): run the stage again with --force") from None
    if len(array.shape) != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
        raise CorruptTableError(f"{path} has shape {array.shape}, this workspace needs {shape}: run its stage again")
    return array
