"""The metrics against trec_eval's own code, and what a tie is worth against all orders of it.

Needs `pip install pytrec-eval-terrier` (wheels, no building); without it the comparison with trec_eval is skipped.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from m3rec_spark.evaluation.metrics import hr, mrr, ndcg
from m3rec_spark.evaluation.ranks import expected_ranks

KERNELS = {"recip_rank": mrr, "ndcg_cut_10": ndcg, "success_10": hr}


def scored(users: int, items: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(users, items) scores without ties, and the column of each user's positive."""
    rng = np.random.default_rng(seed)
    return rng.permuted(np.tile(np.arange(items, dtype=np.float64), (users, 1)), axis=1), rng.integers(0, items, users)


@pytest.mark.parametrize(("users", "items", "seed"), [(300, 100, 0), (200, 12, 1), (50, 7, 2)])
def test_metrics_are_those_of_trec_eval(users: int, items: int, seed: int) -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval", reason="pip install pytrec-eval-terrier")
    scores, positives = scored(users, items, seed)
    rivals = np.arange(items) != positives[:, None]
    ranks = expected_ranks(scores, positives, rivals)
    assert not (ranks % 1).any()

    wanted = {f"u{user}": {f"i{positive}": 1} for user, positive in enumerate(positives)}
    run = {
        f"u{user}": {f"i{item}": score for item, score in enumerate(row)} for user, row in enumerate(scores.tolist())
    }
    top = {user: dict(sorted(row.items(), key=lambda cell: -cell[1])[:10]) for user, row in run.items()}
    measures = {"recip_rank", "ndcg_cut.10", "success.10"}
    found = pytrec_eval.RelevanceEvaluator(wanted, measures).evaluate(top)
    assert len(found) == users
    for name, metric in KERNELS.items():
        by_user = [found[f"u{user}"][name] for user in range(users)]
        assert [metric(rank[None]) for rank in ranks] == pytest.approx(by_user, abs=1e-12)
        assert metric(ranks) == pytest.approx(np.mean(by_user), abs=1e-12)


@given(st.lists(st.integers(0, 2), min_size=2, max_size=6), st.data())
@settings(deadline=None, max_examples=80)
def test_a_tie_has_the_mean_rank_of_all_its_orders(scores: list[int], data: st.DataObject) -> None:
    """And its gains: those of this mean rank, which lie between the best and the worst order's."""
    positive = data.draw(st.integers(0, len(scores) - 1))
    orders = [
        order.index(positive) + 1
        for order in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    rivals = np.arange(len(scores))[None, :] != positive
    rank = expected_ranks(np.array([scores], np.float64), np.array([positive]), rivals)
    mean = sum(orders) / len(orders)
    assert rank[0] == pytest.approx(mean)
    for k in (2, 10):
        assert mrr(rank, k=k) == pytest.approx(1 / mean if mean <= k else 0)
        assert ndcg(rank, k=k) == pytest.approx(1 / math.log2(1 + mean) if mean <= k else 0)
        assert hr(rank, k=k) == (mean <= k)
    assert 1 / max(orders) <= mrr(rank) <= 1 / min(orders)
    assert mrr(rank) <= np.mean([1 / order for order in orders]) + 1e-12  # 1/r is convex: never better than by chance
