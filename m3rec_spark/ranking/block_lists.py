"""The best items of a block of known users, without a score matrix of all items: GEMM by item tile, running threshold.

A tile is scored in float32, and what beats a user's worst kept score goes into his short list of k + SPARE. The short
list is then scored again as `CosineScorer` does it, in float64 rounded to float32, so that items and scores are those
of evaluation and serving. float32's error is bounded (Higham 2002, eq. 3.5: (d + 2) u for vectors of length one); where
the bound cannot tell what is outside a short list from what is in the list, the user is scored exactly (`top_k`).

Cost: 2 B I d flops in float32, one compare a score, 2 B (k + SPARE) d flops in float64; and B h I for a market with a
linear part. Memory: B x TILE scores, B x I where it has a share.
Notation: B users, I items of the market, d dimensions, h items of a history.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from m3rec_spark.compiled import compiled
from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.ranking.scorers import M3RecScorer, unit
from m3rec_spark.ranking.topk import Lists, top_k
from m3rec_spark.similarity.dense import inner_products

TILE = 2048
SPARE = 16  # kept beyond k


def block_lists(scorer: M3RecScorer, arrays: MarketArrays, market: int, users: NDArray[np.int32], k: int) -> Lists:
    """At most k unseen items that the market sells for each user; best first, ties by item.

    Args:
        scorer: the model.
        arrays: its histories.
        market: of the users.
        users: (B,) their indices in the market.
        k: 1 or more.
    """
    slots = arrays.market_slots(market)
    sold = arrays.slot_counts[slots] > 0
    history = arrays.history(market, users)
    vectors, targets = unit(scorer.cosine.vectors(arrays, market, users)), scorer.cosine.unit_items(arrays, market)
    share = scorer.share(arrays, market)
    extra = share * scorer.ease.score(arrays, market, users) if share and scorer.ease else None
    keep = min(k + SPARE, len(sold))
    best, who = np.full((len(users), keep), -np.inf, np.float32), np.full((len(users), keep), -1, np.int32)
    narrow, single = vectors.astype(np.float32), scorer.cosine.unit_items_in_single(arrays, market)
    for start in range(0, len(sold), TILE):
        tile = slice(start, start + TILE)
        scores = inner_products(narrow, single[tile])
        if extra is not None:
            scores += extra[:, tile]
        _hide(scores, start, history.indptr, history.indices, sold)
        _keep_best(scores, start, best, who)
    lists, unsure = _settled(vectors, targets, extra, best, who, k)
    if len(unsure):
        lists = _replaced(lists, unsure, _exactly(scorer, arrays, market, users[unsure], sold, k))
    return lists


def _settled(
    vectors: NDArray[np.float64],
    targets: NDArray[np.float64],
    extra: NDArray[np.float32] | None,
    best: NDArray[np.float32],
    who: NDArray[np.int32],
    k: int,
) -> tuple[Lists, NDArray[np.intp]]:
    """The lists by exact scores; and the users whose short list may lack an item of them."""
    products = np.empty(best.shape)
    _products(vectors, targets, who, products)
    exact = products.astype(np.float32)
    if extra is not None:
        exact += np.take_along_axis(extra, np.maximum(who, 0).astype(np.intp), axis=1)
    order = np.lexsort((who, -exact), axis=1)[:, :k]
    items, scores = np.take_along_axis(who, order, axis=1), np.take_along_axis(exact, order, axis=1)
    found = items >= 0
    offsets = np.concatenate([[0], np.cumsum(found.sum(axis=1))]).astype(np.int64)
    return Lists(offsets, items[found], scores[found]), _unsure(best, who, targets.shape[1], k)


def _unsure(best: NDArray[np.float32], who: NDArray[np.int32], dimension: int, k: int) -> NDArray[np.intp]:
    if best.shape[1] <= k:
        return np.empty(0, np.intp)  # the market has no more items than fit
    full, descending = (who >= 0).all(axis=1), -np.sort(-best.astype(np.float64), axis=1)
    last, worst = descending[:, k - 1], descending[:, -1]
    error = (dimension + 4) * 2.0**-24 * np.maximum(1.0, np.abs(descending[:, 0]))
    return np.flatnonzero(full & ~(worst + error < last - error))


def _exactly(
    scorer: M3RecScorer, arrays: MarketArrays, market: int, users: NDArray[np.int32], sold: NDArray[np.bool_], k: int
) -> Lists:
    history = arrays.history(market, users)
    allowed = np.tile(sold, (len(users), 1))
    allowed[np.repeat(np.arange(len(users)), np.diff(history.indptr)), history.indices] = False
    return top_k(scorer.score(arrays, market, users), allowed, k)


def _replaced(lists: Lists, rows: NDArray[np.intp], others: Lists) -> Lists:
    """`lists` with those of `rows` in the place of theirs."""
    owner = np.repeat(np.arange(len(lists.offsets) - 1), np.diff(lists.offsets))
    kept = ~np.isin(owner, rows)
    owner = np.concatenate([owner[kept], np.repeat(rows, np.diff(others.offsets))])
    order = np.argsort(owner, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(owner, minlength=len(lists.offsets) - 1))]).astype(np.int64)
    return Lists(
        offsets,
        np.concatenate([lists.items[kept], others.items])[order],
        np.concatenate([lists.scores[kept], others.scores])[order],
    )


@compiled
def _hide(
    scores: NDArray[np.float32],
    start: int,
    indptr: NDArray[np.int64],
    indices: NDArray[np.int32],
    sold: NDArray[np.bool_],
) -> None:
    """-inf for items of the history, and for those that nobody bought in the market."""
    stop = start + scores.shape[1]
    for item in range(start, stop):
        if not sold[item]:
            for row in range(len(scores)):
                scores[row, item - start] = -np.inf
    for row in range(len(scores)):
        for pair in range(indptr[row], indptr[row + 1]):
            if start <= indices[pair] < stop:
                scores[row, indices[pair] - start] = -np.inf


@compiled
def _replace_worst(best: NDArray[np.float32], who: NDArray[np.int32], score: float, item: int) -> None:
    """Puts a score in the place of a heap's root, the worst of all: the least score, of equal ones the last item."""
    place, keep = 0, len(best)
    while True:
        child = 2 * place + 1
        if child >= keep:
            break
        other = child + 1
        if other < keep and (best[other] < best[child] or (best[other] == best[child] and who[other] > who[child])):
            child = other
        if score < best[child] or (score == best[child] and item > who[child]):
            break
        best[place], who[place] = best[child], who[child]
        place = child
    best[place], who[place] = score, item


@compiled
def _keep_best(scores: NDArray[np.float32], start: int, best: NDArray[np.float32], who: NDArray[np.int32]) -> None:
    """Keeps every row's largest scores in a heap; of equal ones the items that came first."""
    width = scores.shape[1]
    for row in range(len(scores)):
        worst = best[row, 0]
        for first in range(0, width, 32):
            last = min(first + 32, width)
            better = 0
            for item in range(first, last):  # compiled to a few vector instructions: most runs hold nothing better
                better += scores[row, item] > worst
            if not better:
                continue
            for item in range(first, last):
                if scores[row, item] > worst:
                    _replace_worst(best[row], who[row], scores[row, item], start + item)
                    worst = best[row, 0]


@compiled
def _products(
    vectors: NDArray[np.float64], targets: NDArray[np.float64], who: NDArray[np.int32], out: NDArray[np.float64]
) -> None:
    """U'v of every user with the items of his short list; -inf where it has none."""
    width = vectors.shape[1]
    for row in range(len(who)):
        for place in range(who.shape[1]):
            item = who[row, place]
            if item < 0:
                out[row, place] = -np.inf
                continue
            a = b = c = d = 0.0  # four sums, as one would wait for itself
            for k in range(0, width - 3, 4):
                a += vectors[row, k] * targets[item, k]
                b += vectors[row, k + 1] * targets[item, k + 1]
                c += vectors[row, k + 2] * targets[item, k + 2]
                d += vectors[row, k + 3] * targets[item, k + 3]
            for k in range(width - width % 4, width):
                a += vectors[row, k] * targets[item, k]
            out[row, place] = (a + b) + (c + d)
