"""How much of the EASE score goes on top of the cosine, market by market, as the validation half has it.

    score of (user, item) in market m = cosine(u, v) + w_m (x B)_item

The cosine lives in d dimensions and blurs what B says of rare items; where the users of a market are served better with
some of B put back, w_m > 0. One number per market is chosen, so the half that chooses can hardly be overfitted.
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
from m3rec_spark.evaluation.validation import sample_blocks
from m3rec_spark.ranking.scorers import Scorer

BLOCK = 256  # users scored at once


def choose_weights(
    cosine: Scorer, ease: Scorer, arrays: MarketArrays, sample: pa.Table, tried: Sequence[float]
) -> NDArray[np.float32]:
    """(M,) w_m: of the weights tried the one with the highest validation NDCG@10 in the market, the first on a tie.

    Args:
        cosine: scores of the market model.
        ease: scores to add.
        arrays: histories and slots.
        sample: rows of CANDIDATES of the validation half; a market without any gets 0.
        tried: weights.
    """
    weights = np.zeros(arrays.n_markets, np.float32)
    ranks: dict[int, list[NDArray[np.float64]]] = {}
    for market, users, local, rivals in sample_blocks(arrays, sample, BLOCK):
        base, added = (scorer.score(arrays, market, users) for scorer in (cosine, ease))
        block = [expected_ranks(base + np.float32(weight) * added, local, rivals) for weight in tried]
        ranks.setdefault(market, []).append(np.stack(block))
    for market, blocks in ranks.items():
        by_weight = np.concatenate(blocks, axis=1)  # (weights tried, users)
        weights[market] = tried[int(np.argmax([ndcg(row) for row in by_weight]))]
    return weights
