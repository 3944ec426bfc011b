"""How much of a linear item model goes on top of the cosine, and of which, market by market, as validation has it.

    score of (user, item) in market m = cosine(u, v) + w_m (x B)_item

The cosine lives in d dimensions and blurs what B says of rare items; where the users of a market are served better with
some of B put back, w_m > 0. Two numbers per market are chosen, so the half that chooses can hardly be overfitted.
Cost: one pass over the validation sample per scorer, users x (items of the market) scores a block.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.evaluation.metrics import ndcg
from m3rec_spark.evaluation.ranks import expected_ranks
from m3rec_spark.evaluation.validation import judging, refuse_test_users, sample_blocks
from m3rec_spark.ranking.scorers import Scorer

BLOCK = 256  # users scored at once


def choose_weights(
    cosine: Scorer, linear: Sequence[Scorer], arrays: MarketArrays, sample: pa.Table, tried: Sequence[float]
) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
    """(M,) which linear model and (M,) w_m: those with the highest validation NDCG@10 in the market.

    On a tie the first model, and of it the first weight. A market with too few users to judge takes what is best in
    the mean over those that do (`judging`).

    Args:
        cosine: scores of the market model.
        linear: models whose scores may be added.
        arrays: histories and slots.
        sample: rows of CANDIDATES of the validation half.
        tried: weights.

    Raises:
        UsageError: the sample holds test users.
    """
    refuse_test_users(sample)
    chosen, weights = np.zeros(arrays.n_markets, np.intp), np.zeros(arrays.n_markets, np.float32)
    ranks: dict[int, list[NDArray[np.float64]]] = {}
    for market, users, local, rivals in sample_blocks(arrays, sample, BLOCK):
        base = cosine.score(arrays, market, users)
        block = []
        for scorer in linear:
            added = scorer.score(arrays, market, users)
            block += [expected_ranks(base + np.float32(weight) * added, local, rivals) for weight in tried]
        ranks.setdefault(market, []).append(np.stack(block))
    found = {market: np.concatenate(blocks, axis=1) for market, blocks in ranks.items()}  # (models x weights, users)
    values = {market: [ndcg(row) for row in by_choice] for market, by_choice in found.items()}
    judges = judging({market: [by_choice[0]] for market, by_choice in found.items()})
    common = np.mean([values[market] for market in judges], axis=0)
    for market in range(arrays.n_markets):
        best = int(np.argmax(values[market] if market in judges else common))
        chosen[market], weights[market] = best // len(tried), tried[best % len(tried)]
    return chosen, weights
