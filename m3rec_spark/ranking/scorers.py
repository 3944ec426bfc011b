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
from m3rec_spark.errors import CorruptTableError
from m3rec_spark.similarity.dense import inner_products
from m3rec_spark.similarity.market_rows import MarketRows, market_rows

LINEAR = "linear"  # folder in the table `model`: the markets' own linear models, where it was trained with them
Scores = NDArray[np.float32]
Local = NDArray[np.float32]  # (B, d) U-Loca of users


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
        return self.of_histories(arrays, market, arrays.history(market, users))

    def of_histories(self, arrays: MarketArrays, market: int, history: sp.csr_matrix) -> Scores:
        """(B, I) scores for histories (B, I) of any users, float32 ones; local columns."""
        slots = arrays.market_slots(market)
        rows = _market_rows(self.folder, market, slots.stop - slots.start)
        x, bought = _bought(history)
        scores = x @ rows(bought)
        return np.asarray(scores.toarray() if sp.issparse(scores) else scores)

    def pairs(self, arrays: MarketArrays, market: int, items: NDArray[np.intp], others: NDArray[np.intp]) -> Scores:
        """(h, k) entries of B between local items, ascending and distinct, and others."""
        slots = arrays.market_slots(market)
        block = _market_rows(self.folder, market, slots.stop - slots.start)(items)[:, others]
        return np.asarray(block.toarray() if sp.issparse(block) else block)


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
        return self._score(arrays, market, self.vectors(arrays, market, users))

    def of_histories(self, arrays: MarketArrays, market: int, history: sp.csr_matrix, local: Local) -> Scores:
        """(B, I) scores for histories (B, I) and U-Loca (B, d), which is 0 for users that training did not know."""
        return self._score(arrays, market, self.mean_of_histories(arrays, market, history) + local)

    def vectors(self, arrays: MarketArrays, market: int, users: NDArray[np.int32]) -> NDArray[np.float64]:
        """(B, d) user vectors, eq. 11."""
        local = self.local(arrays, market, users)
        return self.mean_of_histories(arrays, market, arrays.history(market, users)) + local

    def local(self, arrays: MarketArrays, market: int, users: NDArray[np.int32]) -> Local:
        """(B, d) U-Loca."""
        rows = arrays.user_offsets[market] + users
        return np.asarray(mapped(self.folder, "user_vectors", (arrays.n_rows, None))[rows])

    def mean_of_histories(self, arrays: MarketArrays, market: int, history: sp.csr_matrix) -> NDArray[np.float64]:
        """(B, d) the mean of (B V)_i over the items of each history whose row of B_m is not empty, else zero."""
        x, bought = _bought(history)
        smoothed, weights = self.parts(arrays, market, bought)
        x = x.astype(np.float64)
        total, count = x @ smoothed, (x @ weights)[:, None]
        mean: NDArray[np.float64] = np.divide(total, count, out=np.zeros_like(total), where=count != 0)
        return mean

    def parts(
        self, arrays: MarketArrays, market: int, items: NDArray[np.intp]
    ) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        """Of local items: (k, d) their (B V)_i, and (k,) 1, or 0 where the row of B_m is empty."""
        slots, n_slots = arrays.market_slots(market).start + items, len(arrays.slot_items)
        smoothed = mapped(self.folder, "history_vectors", (n_slots, None))[slots]
        return smoothed.astype(np.float64), np.asarray(mapped(self.folder, "history_weights", (n_slots,))[slots])

    def unit_items(self, arrays: MarketArrays, market: int) -> NDArray[np.float64]:
        """(I, d) the market's item vectors, eq. 10, at length one."""
        slots = arrays.market_slots(market)
        return _unit_items(self.folder, slots.start, slots.stop, len(arrays.slot_items))

    def unit_items_in_single(self, arrays: MarketArrays, market: int) -> NDArray[np.float32]:
        """The same, rounded."""
        slots = arrays.market_slots(market)
        return _unit_items_in_single(self.folder, slots.start, slots.stop, len(arrays.slot_items))

    def _score(self, arrays: MarketArrays, market: int, vectors: NDArray[np.float64]) -> Scores:
        return inner_products(unit(vectors), self.unit_items(arrays, market)).astype(np.float32)


@dataclass(frozen=True)
class M3RecScorer:
    """cos(u, v) + w_m (x B)_item: the market model with the linear part that `evaluation.blend` chose."""

    cosine: CosineScorer
    ease: EaseScorer | None
    """None for a model that was trained without a linear part: w_m = 0 everywhere."""
    name: str = "m3rec"

    def score(self, arrays: MarketArrays, market: int, users: NDArray[np.int32]) -> Scores:
        """See Scorer."""
        scores = self.cosine.score(arrays, market, users)
        weight = self.share(arrays, market)
        if not weight or self.ease is None:
            return scores
        return np.asarray(scores + weight * self.ease.score(arrays, market, users))

    def of_histories(self, arrays: MarketArrays, market: int, history: sp.csr_matrix, local: Local) -> Scores:
        """(B, I) scores for histories (B, I) and U-Loca (B, d), which is 0 for users that training did not know."""
        scores = self.cosine.of_histories(arrays, market, history, local)
        weight = self.share(arrays, market)
        if not weight or self.ease is None:
            return scores
        return np.asarray(scores + weight * self.ease.of_histories(arrays, market, history))

    def share(self, arrays: MarketArrays, market: int) -> np.float32:
        """w_m."""
        if self.ease is None:
            return np.float32(0)
        return np.float32(mapped(self.cosine.folder, "ease_weights", (arrays.n_markets,))[market])


def published_scorer(model: str, ease: str) -> M3RecScorer:
    """The complete model from the folders of the tables `model` and `ease`.

    The linear part is the one that the model brings, or else B of `ease`.
    """
    if not (Path(model) / "ease_weights.npy").is_file():
        return M3RecScorer(CosineScorer(model), None)
    own = Path(model) / LINEAR
    return M3RecScorer(CosineScorer(model), EaseScorer(str(own) if own.is_dir() else ease))


def _bought(history: sp.csr_matrix) -> tuple[sp.csr_matrix, NDArray[np.intp]]:
    """The columns that have entries, ascending, and the matrix of these only: what they select is all that is read."""
    bought, columns = np.unique(history.indices, return_inverse=True)
    shape = (history.shape[0], len(bought))
    return sp.csr_matrix((history.data, columns, history.indptr), shape=shape), bought


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows divided by their length; a zero row stays zero."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length != 0)


@functools.lru_cache(maxsize=16)
def _unit_items(folder: str, start: int, stop: int, n_slots: int) -> NDArray[np.float64]:
    """Item vectors at length one, computed once per process: 8 d bytes an item."""
    return unit(mapped(folder, "item_vectors", (n_slots, None))[start:stop].astype(np.float64))


@functools.lru_cache(maxsize=16)
def _unit_items_in_single(folder: str, start: int, stop: int, n_slots: int) -> NDArray[np.float32]:
    return _unit_items(folder, start, stop, n_slots).astype(np.float32)


def _remedy(folder: str) -> str:
    """A stage makes its table again when it is forced to; of a comparison only the run at hand has to go."""
    if Path(folder).parent.name == "compare":
        return "remove that folder and run `m3rec compare` again"
    return "run the stage that makes it again with --force"


@functools.lru_cache(maxsize=16)
def _market_rows(folder: str, market: int, n_items: int) -> MarketRows:
    """B within a market, opened once per process."""
    try:
        rows = market_rows(folder, market)
        found = rows(np.array([], np.int64)).shape[1]
        if found != n_items:
            raise ValueError(f"{found} items in market {market}, this workspace has {n_items}")
    except (OSError, ValueError) as error:
        raise CorruptTableError(f"the linear model in {folder} cannot be read ({error}): {_remedy(folder)}") from None
    return rows


@functools.lru_cache(maxsize=16)
def mapped(folder: str, name: str, shape: tuple[int | None, ...]) -> NDArray[Any]:
    """A published array, mapped once per process. None in shape: any size."""
    path = Path(folder) / f"{name}.npy"
    try:
        array = np.asarray(np.load(path, mmap_mode="r"))
    except (OSError, ValueError) as error:
        raise CorruptTableError(f"{path} cannot be read ({error}): {_remedy(folder)}") from None
    if len(array.shape) != len(shape) or any(n not in (None, m) for n, m in zip(shape, array.shape, strict=True)):
        raise CorruptTableError(f"{path} has shape {array.shape}, this workspace needs {shape}: run its stage again")
    return array
