"""Does V-Glob rank what is bought together? A probe of item vectors on held-out pairs, for each epoch of skip-gram.

A pair is an item of a user's history with the item held out of it. AUC: the share of rival items that are less like the
history item, by the cosine, than the held-out item is; ties count half. 1/2 is chance.

Rivals come from the pair's market with probability proportional to their train count. Held-out pairs are a sample of
all pairs, so held-out items come with that probability too: a vector that knows nothing but popularity scores 1/2,
where rivals drawn uniformly would let popularity pass for similarity.

Cost: K R d for K pairs with R rivals each.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.errors import UsageError

log = logging.getLogger(__name__)

_CHUNK = 1024  # pairs scored at once
_RISING = 0.005  # an AUC that still rises by this much in the last epoch: more epochs would help
_SIGMAS = 3.0


@dataclass(frozen=True)
class Probe:
    """Held-out pairs and their rivals.

    Attributes:
        pairs: (K, 2) items: of the history, held out.
        rivals: (K, R) items.
    """

    pairs: NDArray[np.int32]
    rivals: NDArray[np.int32]

    def auc(self, vectors: NDArray[np.float32]) -> float:
        """Mean over the pairs; NaN without pairs.

        Args:
            vectors: (n, d); a vector of length 0 is as like to any other as to none.
        """
        norms = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 0)
        won = 0.0
        for start in range(0, len(self.pairs), _CHUNK):
            history, held = self.pairs[start : start + _CHUNK].T
            others = self.rivals[start : start + _CHUNK]
            # einsum for both, not a product of matrices: the same pair of items must give the same bits, or ties break
            likeness = np.einsum("kd,krd->kr", unit[history], unit[np.column_stack([held, others])])
            own, rival = likeness[:, :1], likeness[:, 1:]
            won += float(np.mean((rival < own) + 0.5 * (rival == own), axis=1).sum())
        return won / len(self.pairs) if len(self.pairs) else math.nan

    def chance(self) -> float:
        """The AUC that vectors without any knowledge exceed once in about 700 times.

        Without knowledge the held-out item takes each of the R + 1 places with the same probability, so that a pair's
        AUC has variance (R + 2) / 12 R.
        """
        rivals = self.rivals.shape[1]
        return 0.5 + _SIGMAS * math.sqrt((rivals + 2) / (12 * rivals * max(len(self.pairs), 1)))

    def warn(self, aucs: list[float]) -> None:
        """Says so where the last epochs' AUCs show an under-trained V-Glob."""
        if aucs[-1] <= self.chance():
            log.warning(
                "V-Glob ranks held-out items no better than chance: AUC %.4f, chance is up to %.4f with %d pairs; "
                "raise skipgram.epochs, skipgram.learning_rate or walks.per_item",
                aucs[-1], self.chance(), len(self.pairs),
            )  # fmt: skip
        if len(aucs) > 1 and aucs[-1] - aucs[-2] > _RISING:
            log.warning(
                "V-Glob is under-trained: its AUC on held-out items still rose from %.4f to %.4f in the last epoch; "
                "raise skipgram.epochs",
                aucs[-2], aucs[-1],
            )  # fmt: skip


def held_out_pairs(
    arrays: MarketArrays,
    rows: NDArray[np.int64],
    slots: NDArray[np.int64],
    has_vector: NDArray[np.bool_],
    *,
    at_most: int = 5000,
    rivals: int = 50,
    seed: int,
) -> Probe:
    """The probe of held-out pairs; it does not depend on their order.

    A seeded sample of the pairs gets a random item of the user's history each. Pairs whose user has no history, or with
    an item that has no vector, are skipped and counted in the log. A rival that is the history item itself becomes the
    held-out item, which is a tie.

    Args:
        arrays: the train histories.
        rows: (P,) the users of held-out pairs, as rows of `arrays`; of the validation half only.
        slots: (P,) the held-out items, as slots of the user's market.
        has_vector: (n,) items that walks visit; only these are rivals.
        at_most: pairs to keep.
        rivals: R of each pair.
        seed: of the sample, the history items and the rivals.

    Raises:
        UsageError: at_most or rivals is not positive.
    """
    if at_most < 1 or rivals < 1:
        raise UsageError(f"a probe needs at_most >= 1 and rivals >= 1, got {at_most} and {rivals}")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(rows))[:at_most]
    chosen = np.lexsort((slots, rows))[order]
    rows, slots = rows[chosen], slots[chosen]
    first, length = arrays.indptr[rows], np.diff(arrays.indptr)[rows]
    position = first + (rng.random(len(rows)) * length).astype(np.int64)
    history = arrays.slot_items[arrays.slots[np.minimum(position, len(arrays.slots) - 1)]]
    held = arrays.slot_items[slots]
    usable = (length > 0) & has_vector[history] & has_vector[held] & (history != held)
    log.info("probe: %d held-out pairs; %d skipped, no vector or no history", usable.sum(), (~usable).sum())
    history, held, slots = history[usable], held[usable], slots[usable]

    counts = np.concatenate([[0], np.cumsum(arrays.slot_counts * has_vector[arrays.slot_items], dtype=np.int64)])
    market = np.searchsorted(arrays.slot_offsets, slots, side="right") - 1
    low, high = counts[arrays.slot_offsets[market]], counts[arrays.slot_offsets[market + 1]]
    drawn = low[:, None] + (rng.random((len(slots), rivals)) * (high - low)[:, None]).astype(np.int64)
    others = arrays.slot_items[np.searchsorted(counts, drawn, side="right") - 1]
    others = np.where(others == history[:, None], held[:, None], others)
    return Probe(np.column_stack([history, held]), others)
