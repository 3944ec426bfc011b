from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest

from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.errors import UsageError
from m3rec_spark.evaluation.blend import choose_weights


@dataclass(frozen=True)
class Fixed:
    """The same scores of the market's items for every user."""

    by_market: tuple[tuple[float, ...], ...]
    name: str = "fixed"

    def score(self, arrays: MarketArrays, market: int, users: np.ndarray) -> np.ndarray:
        return np.tile(np.array(self.by_market[market], np.float32), (len(users), 1))


def shop() -> MarketArrays:
    """Three markets of one user and the items 0, 1, 2."""
    return MarketArrays(
        indptr=np.array([0, 0, 0, 0]),
        slots=np.empty(0, np.int32),
        user_offsets=np.array([0, 1, 2, 3]),
        slot_items=np.tile(np.arange(3, dtype=np.int32), 3),
        slot_offsets=np.array([0, 3, 6, 9]),
        slot_counts=np.ones(9, np.int32),
        n_items=3,
    )


def sample(markets: list[int]) -> pa.Table:
    """In every market user 0 has item 0 held out, against 1 and 2."""
    n = len(markets)
    return pa.table(
        {
            "market": pa.array(markets, pa.int32()),
            "user": pa.array([0] * n, pa.int32()),
            "positive": pa.array([0] * n, pa.int32()),
            "half": ["valid"] * n,
            "negatives": pa.array([[1, 2]] * n, pa.list_(pa.int32())),
        }
    )


def test_each_market_gets_the_share_that_ranks_its_positive_best() -> None:
    # market 0: cosine has the positive last (1, 2, 3), ease first (5, 0, 0): 1 + 0.4 * 5 = 3 only ties with item 2,
    # 1 + 0.8 * 5 = 5 > 3 wins. Market 1: the cosine is right, ease would spoil it. Market 2: nobody to judge; in the
    # mean of the others 0 is as good as 0.8: (1/2 + 1) / 2.
    cosine = Fixed(((1, 2, 3), (3, 2, 1), (1, 2, 3)))
    ease = Fixed(((5, 0, 0), (0, 5, 5), (5, 0, 0)))
    _, weights = choose_weights(cosine, [ease], shop(), sample([0, 1]), (0.0, 0.4, 0.8, 1.6))
    np.testing.assert_array_equal(weights, np.array([0.8, 0.0, 0.0], np.float32))  # 0.8 before the equal 1.6


def test_each_market_gets_the_linear_model_that_ranks_its_positive_best() -> None:
    """Market 0: only the second has the positive first. Market 1: both have, the first stays. Market 2: as the mean."""
    cosine = Fixed(((1, 2, 3),) * 3)
    first, second = Fixed(((0, 9, 0), (9, 0, 0), (0, 9, 0))), Fixed(((9, 0, 0),) * 3)
    chosen, weights = choose_weights(cosine, [first, second], shop(), sample([0, 1]), (0.0, 1.0))
    assert chosen.tolist() == [1, 0, 1]
    assert weights.tolist() == [1.0, 1.0, 1.0]


def test_a_handful_of_users_takes_what_the_others_take(monkeypatch: pytest.MonkeyPatch) -> None:
    """Market 0's users want the linear model, market 1's one user does not: he does not choose."""
    monkeypatch.setattr("m3rec_spark.evaluation.validation.FEWEST", 2)
    cosine = Fixed(((1, 2, 3), (3, 2, 1), (0, 0, 0)))
    linear = Fixed(((9, 0, 0), (0, 9, 9), (0, 0, 0)))
    _, weights = choose_weights(cosine, [linear], shop(), sample([0, 0, 1]), (0.0, 1.0))
    assert weights.tolist() == [1.0, 1.0, 1.0]
    _, weights = choose_weights(cosine, [linear], shop(), sample([0, 0, 1, 1]), (0.0, 1.0))
    assert weights.tolist() == [1.0, 0.0, 0.0]  # level in the mean: the first


def test_only_the_candidates_count() -> None:
    lists = sample([0]).set_column(4, "negatives", pa.array([[1]], pa.list_(pa.int32())))
    cosine, ease = Fixed(((1, 0, 9), (0,) * 3, (0,) * 3)), Fixed(((9, 0, 0), (0,) * 3, (0,) * 3))
    assert (
        choose_weights(cosine, [ease], shop(), lists, (0.0, 1.6))[1][0] == 0.0
    )  # item 2 is no candidate: nothing to mend


def test_the_test_half_chooses_no_share() -> None:
    scores = Fixed(((1, 0, 0),) * 3)
    tested = sample([0, 1]).set_column(3, "half", pa.array(["valid", "test"]))
    with pytest.raises(UsageError, match="got users of 'test': the test half only judges"):
        choose_weights(scores, [scores], shop(), tested, (0.0, 1.0))
