"""From pairs to a training batch: slots, histories without the target, negatives of the pair's own market.

Everything random is keyed by (seed, epoch, batch): the same batch gets the same negatives and the same dropout in a
resumed run, on any machine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from m3rec_spark.errors import DataError
from m3rec_spark.models.pairs import Pairs

if TYPE_CHECKING:
    from m3rec_spark.data.arrays import MarketArrays


class PairSampler:
    """Makes the model's batches out of (market, user, item) pairs.

    Args:
        arrays: histories and slots of all markets.
        negatives: K; with `shared` at most the pool of the market, drawn without replacement (K >= pool: all of it).
        shared: one set of negatives per market of a batch; else K for each pair, with replacement.
        exclude_target: leave the pair's own item out of its history.
        dropout: share of the history left out at random (a history is never emptied by it).
        seed: of negatives and dropout.
    """

    def __init__(
        self, arrays: MarketArrays, negatives: int, shared: bool, exclude_target: bool, dropout: float, seed: int
    ) -> None:
        self._arrays = arrays
        self._negatives, self._shared = negatives, shared
        self._exclude_target, self._dropout, self._seed = exclude_target, dropout, seed
        markets = np.repeat(np.arange(arrays.n_markets), np.diff(arrays.slot_offsets))
        self._slot_keys = markets * arrays.n_items + arrays.slot_items  # ascending: markets, then items
        self._pools = [
            first + np.flatnonzero(arrays.slot_counts[first:last] > 0)
            for first, last in zip(arrays.slot_offsets[:-1], arrays.slot_offsets[1:], strict=True)
        ]

    def pairs(
        self, market: NDArray[np.int64], user: NDArray[np.int64], item: NDArray[np.int64], epoch: int, batch: int
    ) -> Pairs:
        """The model's batch for (P,) pairs; they come out ordered by market.

        Raises:
            DataError: an item is not in its market's slots (feed and arrays of different runs).
        """
        generator = np.random.default_rng([self._seed, epoch, batch])
        order = np.argsort(market, kind="stable")
        market, user = market[order], user[order]
        positives = self._slots_of(market, item[order])
        rows = self._arrays.user_offsets[market] + user
        present, sizes = np.unique(market, return_counts=True)
        negatives = [self._draw(self._pools[m], size, generator) for m, size in zip(present, sizes, strict=True)]
        bag_slots, bag_starts = self._histories(rows, positives, generator)
        return Pairs(
            rows=torch.from_numpy(rows),
            positives=torch.from_numpy(positives),
            bag_slots=torch.from_numpy(bag_slots),
            bag_starts=torch.from_numpy(bag_starts),
            sizes=sizes.tolist(),
            negatives=tuple(torch.from_numpy(slots) for slots in negatives),
        )

    def _slots_of(self, market: NDArray[np.int64], item: NDArray[np.int64]) -> NDArray[np.int64]:
        wanted = market * self._arrays.n_items + item
        slots = np.minimum(np.searchsorted(self._slot_keys, wanted), len(self._slot_keys) - 1)
        wrong = np.flatnonzero(self._slot_keys[slots] != wanted)
        if wrong.size:
            raise DataError(
                f"item {item[wrong[0]]} of the feed is not in market {market[wrong[0]]} of the arrays: "
                "they come from different runs; run `m3rec prepare --force`"
            )
        return slots

    def _draw(self, pool: NDArray[np.int64], pairs: int, generator: np.random.Generator) -> NDArray[np.int64]:
        if self._shared:
            drawn = generator.choice(len(pool), min(self._negatives, len(pool)), replace=False, shuffle=False)
        else:
            drawn = generator.integers(len(pool), size=(pairs, self._negatives))
        return np.take(pool, drawn)

    def _histories(
        self, rows: NDArray[np.int64], targets: NDArray[np.int64], generator: np.random.Generator
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Bags of the rows' histories (slots, starts) after the target and the dropped items went."""
        slots, lengths = gather_histories(self._arrays, rows)
        owner = np.repeat(np.arange(len(rows)), lengths)
        keep = slots != targets[owner] if self._exclude_target else np.ones(len(slots), bool)
        if self._dropout:
            survives = keep & (generator.random(len(slots)) >= self._dropout)
            emptied = np.bincount(owner[survives], minlength=len(rows)) == 0
            keep &= survives | emptied[owner]
        return slots[keep], starts(np.bincount(owner[keep], minlength=len(rows)))


def gather_histories(arrays: MarketArrays, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(slots, lengths): the train histories of flat users, one after the other."""
    first = arrays.indptr[rows]
    lengths = arrays.indptr[rows + 1] - first
    position = np.arange(lengths.sum()) + np.repeat(first - starts(lengths), lengths)
    return arrays.slots[position].astype(np.int64), lengths


def starts(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where runs of these lengths begin when laid one after the other.

    >>> starts(np.array([2, 0, 3])).tolist()
    [0, 2, 2]
    """
    return np.cumsum(lengths) - lengths
