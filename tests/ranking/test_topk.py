from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from m3rec_spark.ranking.topk import top_k


def by_sorting(scores: np.ndarray, allowed: np.ndarray, k: int) -> list[list[int]]:
    return [
        sorted((i for i in range(scores.shape[1]) if allowed[b, i]), key=lambda i: (-scores[b, i], i))[:k]
        for b in range(len(scores))
    ]


def test_ties_go_by_item_and_what_is_not_allowed_stays_out() -> None:
    scores = np.array([[3, 5, 5, 1], [2, 2, 2, 2]], np.float32)
    allowed = np.array([[True, True, True, True], [False, True, False, True]])
    lists = top_k(scores, allowed, 3)
    assert lists.offsets.tolist() == [0, 3, 5]
    assert lists.items.tolist() == [1, 2, 0, 1, 3]
    assert lists.scores.tolist() == [5, 5, 3, 2, 2]


def test_nothing_allowed_and_no_items() -> None:
    assert top_k(np.zeros((2, 3), np.float32), np.zeros((2, 3), bool), 2).offsets.tolist() == [0, 0, 0]
    assert top_k(np.zeros((2, 0), np.float32), np.zeros((2, 0), bool), 2).offsets.tolist() == [0, 0, 0]


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 12), st.integers(1, 15), st.integers(0, 2**32 - 1))
def test_equals_sorting(users: int, items: int, k: int, seed: int) -> None:
    """Few distinct scores: ties at every boundary."""
    rng = np.random.default_rng(seed)
    scores = rng.integers(-2, 3, (users, items)).astype(np.float32)
    allowed = rng.random((users, items)) < 0.7
    lists = top_k(scores, allowed, k)
    found = [lists.items[a:b].tolist() for a, b in zip(lists.offsets, lists.offsets[1:], strict=False)]
    assert found == by_sorting(scores, allowed, k)
    owner = np.repeat(np.arange(users), np.diff(lists.offsets))
    np.testing.assert_array_equal(lists.scores, scores[owner, lists.items])
