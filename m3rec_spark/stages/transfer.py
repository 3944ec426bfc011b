"""Does market k help market m? EASE solved again without the Gram of k, and each market alone, on the test half.

    gain of k for m = NDCG@10 in m with all markets - NDCG@10 in m without k

The Gram is the sum of one a market, so that leaving one out is a weight of 0: M dense solves, and one small one for
every market alone. Users of m are compared with themselves: paired t-test, bootstrap interval, Holm over m's rows.
"""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from m3rec_spark.config import digest, provenance
from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.evaluation.metrics import gains_of
from m3rec_spark.evaluation.ranks import expected_ranks
from m3rec_spark.evaluation.significance import compare, holm
from m3rec_spark.evaluation.tables import OTHERS
from m3rec_spark.evaluation.validation import sample_blocks, validation_sample
from m3rec_spark.paths import write_atomically
from m3rec_spark.similarity import ease
from m3rec_spark.stages.bench import Bench
from m3rec_spark.stages.closed_forms import ease_alone, market_items
from m3rec_spark.stages.context import Context

log = logging.getLogger(__name__)

_BLOCK = 256
_DECIMALS = 9  # of a score: items with the same buyers are level, and the solver's rounding must not break their tie
_USERS = 20_000  # of the test half that judge a transfer, at most


def audit(context: Context, bench: Bench, folder: Path) -> list[dict[str, Any]]:
    """The rows of `_audit`, kept in a file of the folder: the solves are not done again for the same settings."""
    seed, lambda_f = context.config.compare.seed, context.config.ease.lambda_f
    place = folder / f"transfer-{digest(bench.data_key, provenance(context.config, 'gram'), lambda_f, seed)[:12]}.json"
    try:
        rows: list[dict[str, Any]] = json.loads(place.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError) as error:
        if place.is_file():
            log.warning("%s is damaged (%s): made again", place, error)
        rows = _audit(context, bench, lambda_f, seed)
        write_atomically(place, json.dumps(rows).encode())
    return rows


def _audit(context: Context, bench: Bench, lambda_f: float, seed: int) -> list[dict[str, Any]]:
    """A row for every (helper, market): the gain with its interval; helper "others": all against the market alone."""
    sample = validation_sample(context.workspace.folder("candidates"), _USERS, seed, half="test")
    arrays, markets = bench.arrays, range(bench.arrays.n_markets)

    def gains(weights: Callable[[int], NDArray[np.float64]], wanted: list[int]) -> dict[int, NDArray[np.float64]]:
        found: dict[int, list[NDArray[np.float64]]] = {market: [] for market in wanted}
        for market, users, positives, rivals in sample_blocks(arrays, sample, _BLOCK):
            if market in found:
                scores = np.round(arrays.history(market, users) @ weights(market), _DECIMALS)
                ranks = expected_ranks(scores, positives, rivals)
                found[market].append(gains_of("ndcg", ranks))
        return {market: np.concatenate(parts) if parts else np.zeros(0) for market, parts in found.items()}

    everyone = gains(_solved(bench, np.ones(len(markets)), lambda_f), list(markets))
    without = {}
    for helper in markets:
        given = np.ones(len(markets))
        given[helper] = 0.0
        without[helper] = gains(_solved(bench, given, lambda_f), [m for m in markets if m != helper])
        log.info("transfer: solved without %s", bench.market_ids[helper])
    own = functools.lru_cache(maxsize=1)(lambda market: ease_alone(bench, market, lambda_f))
    alone = gains(own, list(markets))
    rows = []
    for market in markets:
        tests = [_row(bench, OTHERS, market, everyone[market] - alone[market], seed)]
        tests += [
            _row(bench, bench.market_ids[helper], market, everyone[market] - without[helper][market], seed)
            for helper in markets
            if helper != market
        ]
        for row, p in zip(tests, holm([row["p_t"] for row in tests]), strict=True):
            row["p_holm"] = p
        rows += tests
    return rows


def shared_items(arrays: MarketArrays, market_ids: dict[int, str]) -> dict[str, Any]:
    """Who shares what: how many items with train pairs two markets have in common, and how many each sells."""
    warm = [arrays.slot_items[s][arrays.slot_counts[s] > 0] for s in map(arrays.market_slots, range(arrays.n_markets))]
    sold = sparse.csr_matrix(
        (np.ones(sum(map(len, warm)), np.int64), np.concatenate(warm), np.cumsum([0, *map(len, warm)])),
        shape=(len(warm), arrays.n_items),
    )
    return {"markets": [market_ids[m] for m in range(len(warm))], "items": (sold @ sold.T).toarray().tolist()}


def _row(bench: Bench, helper: str, market: int, differences: NDArray[np.float64], seed: int) -> dict[str, Any]:
    values, users = np.unique(differences, return_counts=True)
    return {"helper": helper, "market": bench.market_ids[market], **vars(compare(values, users.astype(np.int64), seed))}


def _solved(bench: Bench, given: NDArray[np.float64], lambda_f: float) -> Callable[[int], NDArray[np.float64]]:
    """B within a market, of the weighted sum of the Grams."""
    weights, items = ease.solve(bench.gram(given), lambda_f), list(market_items(bench.arrays))
    # blocks come market by market: one is enough
    return functools.lru_cache(maxsize=1)(lambda market: weights[np.ix_(items[market], items[market])])
