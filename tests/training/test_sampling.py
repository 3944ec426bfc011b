"""Slots, histories and negatives of a batch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.errors import DataError
from m3rec_spark.models.pairs import Pairs
from m3rec_spark.training.sampling import PairSampler, gather_histories

# Market 0 sells items 1, 4, 7 (slots 0-2; 7 is cold), market 1 sells items 0, 1, 4, 9 (slots 3-6).
ARRAYS = MarketArrays(
    indptr=np.array([0, 2, 3, 5, 8, 8]),
    slots=np.array([0, 1, 1, 3, 5, 4, 5, 6], np.int32),
    user_offsets=np.array([0, 2, 5]),
    slot_items=np.array([1, 4, 7, 0, 1, 4, 9], np.int32),
    slot_offsets=np.array([0, 3, 7]),
    slot_counts=np.array([1, 2, 0, 1, 1, 2, 1], np.int32),
    n_items=10,
)
MARKET, USER, ITEM = np.array([1, 0, 1, 0]), np.array([1, 0, 0, 1]), np.array([9, 4, 0, 4])


def sampler(
    negatives: int = 2, shared: bool = True, exclude_target: bool = True, dropout: float = 0.0, seed: int = 1
) -> PairSampler:
    return PairSampler(ARRAYS, negatives, shared, exclude_target, dropout, seed)


def bags(pairs: Pairs) -> list[list[int]]:
    begins = [*pairs.bag_starts.tolist(), len(pairs.bag_slots)]
    return [pairs.bag_slots[a:b].tolist() for a, b in itertools.pairwise(begins)]


def test_pairs_are_ordered_by_market_and_mapped_to_rows_and_slots() -> None:
    pairs = sampler().pairs(MARKET, USER, ITEM, epoch=0, batch=0)
    assert pairs.sizes == [2, 2]
    assert pairs.rows.tolist() == [0, 1, 3, 2]
    assert pairs.positives.tolist() == [1, 1, 6, 3]


def test_the_target_is_left_out_of_its_own_history() -> None:
    assert bags(sampler().pairs(MARKET, USER, ITEM, 0, 0)) == [[0], [], [4, 5], [5]]
    whole = sampler(exclude_target=False).pairs(MARKET, USER, ITEM, 0, 0)
    assert bags(whole) == [[0, 1], [1], [4, 5, 6], [3, 5]]


def test_dropout_leaves_out_the_given_share_and_never_the_last_item() -> None:
    many = np.full(3000, 1), np.full(3000, 1), np.full(3000, 9)  # row 3 with history [4, 5] once 6 is out
    kept = [tuple(bag) for bag in bags(sampler(dropout=0.3).pairs(*many, 0, 0))]
    assert set(kept) == {(4, 5), (4,), (5,)}
    # both stay: 0.49; both dropped and so both kept: 0.09
    assert kept.count((4, 5)) / 3000 == pytest.approx(0.58, abs=0.04)


def test_shared_negatives_are_distinct_and_from_the_markets_pool() -> None:
    drawn = [set(), set()]
    for batch in range(50):
        for seen, negatives in zip(drawn, sampler().pairs(MARKET, USER, ITEM, 0, batch).negatives, strict=True):
            assert negatives.shape == (2,)
            assert len(set(negatives.tolist())) == 2
            seen |= set(negatives.tolist())
    assert drawn == [{0, 1}, {3, 4, 5, 6}]  # never slot 2, which is cold


def test_more_negatives_than_the_pool_holds_are_the_whole_pool() -> None:
    negatives = sampler(negatives=100).pairs(MARKET, USER, ITEM, 0, 0).negatives
    assert [sorted(slots.tolist()) for slots in negatives] == [[0, 1], [3, 4, 5, 6]]


def test_own_negatives_are_uniform_over_the_pool() -> None:
    negatives = sampler(negatives=2000, shared=False).pairs(MARKET, USER, ITEM, 0, 0).negatives
    assert [tuple(slots.shape) for slots in negatives] == [(2, 2000), (2, 2000)]
    shares = np.bincount(negatives[1].flatten().numpy(), minlength=7)[3:] / 4000
    np.testing.assert_allclose(shares, 0.25, atol=0.04)  # 6 standard deviations


def test_draws_are_keyed_by_seed_epoch_and_batch() -> None:
    def draw(seed: int, epoch: int, batch: int) -> list[int]:
        return sampler(50, False, seed=seed).pairs(MARKET, USER, ITEM, epoch, batch).negatives[1].flatten().tolist()

    keys = [(1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1)]
    assert draw(1, 0, 0) == draw(1, 0, 0)
    assert len({tuple(draw(*key)) for key in keys}) == 4


def test_a_batch_of_one_market_has_one_segment() -> None:
    pairs = sampler().pairs(np.array([1]), np.array([2]), np.array([9]), 0, 0)
    assert pairs.sizes == [1]
    assert pairs.rows.tolist() == [4]  # no history at all
    assert bags(pairs) == [[]]


def test_an_item_that_its_market_does_not_sell_is_an_error() -> None:
    for item in (9, 0):
        with pytest.raises(DataError, match=f"item {item} of the feed is not in market 0"):
            sampler().pairs(np.array([0]), np.array([0]), np.array([item]), 0, 0)


def test_histories_one_after_the_other() -> None:
    slots, lengths = gather_histories(ARRAYS, np.array([3, 4, 0]))
    assert slots.tolist() == [4, 5, 6, 0, 1]
    assert lengths.tolist() == [3, 0, 2]
