"""How far the approximate B of the neighbourhoods is from the exact one, where the exact one fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.evaluation.validation import mean_ndcg, validation_sample
from m3rec_spark.ranking.scorers import EaseScorer
from m3rec_spark.similarity import weights as by_rows
from m3rec_spark.similarity.b_glob import filter_rows
from m3rec_spark.similarity.neighbourhood import support_overlap
from m3rec_spark.stages.context import Context

_USERS = 5000  # of the validation half


def gap(
    context: Context,
    arrays: MarketArrays,
    approximate: Path,
    kept: sparse.csr_matrix,
    exact: by_rows.DenseWeights,
    scratch: Path,
) -> dict[str, Any]:
    """`support_overlap`: Jaccard of the entries that B-Glob keeps; `ndcg_10` and `ndcg_10_exact` on validation users.

    Args:
        context: of the run.
        arrays: train histories.
        approximate: the table `ease` being written.
        kept: (n, n) the approximate B after the filter of eq. 7.
        exact: B.
        scratch: a folder for its blocks.
    """
    own = by_rows.MarketItems(np.asarray(arrays.slot_items), np.asarray(arrays.slot_offsets))
    folder, proof = scratch / "exact", scratch / "exact-proof"
    proof.mkdir()
    outputs = by_rows.Outputs(own, context.config.ease.epsilon, folder, np.empty(0, np.int64), proof)
    for first in range(0, exact.n_items, outputs.block):
        by_rows.publish_rows(exact, first, outputs)
    overlap = support_overlap(filter_rows(exact.array, context.config.ease.epsilon), kept)
    sample = validation_sample(context.workspace.folder("candidates"), _USERS, context.config.skipgram.seed)
    found: dict[str, Any] = {"support_overlap": round(float(overlap), 4)}
    if sample.num_rows:
        found["ndcg_10"] = mean_ndcg(EaseScorer(str(approximate)), arrays, sample)
        found["ndcg_10_exact"] = mean_ndcg(EaseScorer(str(folder)), arrays, sample)
    return found
