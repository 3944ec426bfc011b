from __future__ import annotations

import logging

import numpy as np
import pytest

from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.data.synthetic import generate_arrays
from m3rec_spark.errors import UsageError
from m3rec_spark.similarity.probe import Probe, held_out_pairs


def probe(pairs: list[list[int]], rivals: list[list[int]]) -> Probe:
    return Probe(np.array(pairs, np.int32).reshape(-1, 2), np.array(rivals, np.int32))


def test_auc_by_hand() -> None:
    """Cosines with item 0: item 1 has 1, item 2 has 0, item 3 has 1 (longer), item 4 has -1, item 5 is no vector: 0."""
    vectors = np.array([[1, 0], [2, 0], [0, 3], [7, 0], [-1, 0], [0, 0]], np.float32)
    assert probe([[0, 1]], [[2, 4, 5, 3]]).auc(vectors) == (3 + 0.5) / 4
    assert probe([[0, 2]], [[1, 4, 5, 3]]).auc(vectors) == (1 + 0.5) / 4
    assert probe([[0, 1], [0, 4]], [[2], [2]]).auc(vectors) == 0.5
    assert np.isnan(probe([], np.empty((0, 4)).tolist()).auc(vectors))


def test_auc_is_a_mean_over_pairs_however_many() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 3)).astype(np.float32)
    pairs, rivals = rng.integers(40, size=(2500, 2)), rng.integers(40, size=(2500, 7))
    one_by_one = [probe([list(pair)], [list(own)]).auc(vectors) for pair, own in zip(pairs, rivals, strict=True)]
    assert probe(pairs.tolist(), rivals.tolist()).auc(vectors) == pytest.approx(np.mean(one_by_one), abs=1e-12)


def test_chance_is_three_deviations() -> None:
    """One rival: a pair's AUC is 0 or 1, deviation 1/2; 900 pairs: 1/60."""
    assert Probe(np.zeros((900, 2), np.int32), np.zeros((900, 1), np.int32)).chance() == pytest.approx(0.5 + 3 / 60)


def test_vectors_without_knowledge_are_within_chance() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        vectors = rng.normal(size=(3000, 8)).astype(np.float32)
        # distinct items throughout: pairs are independent
        items = rng.permutation(3000).reshape(300, 10)
        auc = Probe(items[:, :2].astype(np.int32), items[:, 2:].astype(np.int32)).auc(vectors)
        assert abs(auc - 0.5) < Probe(items[:, :2], items[:, 2:]).chance() - 0.5


@pytest.mark.parametrize(
    ("aucs", "told"),
    [([0.6, 0.7], "still rose from 0.6000 to 0.7000"), ([0.5], "no better than chance"), ([0.7, 0.7], "")],
)
def test_warnings(aucs: list[float], told: str, caplog: pytest.LogCaptureFixture) -> None:
    Probe(np.zeros((10_000, 2), np.int32), np.zeros((10_000, 9), np.int32)).warn(aucs)
    assert (told in caplog.text) if told else (caplog.text == "")


@pytest.fixture(scope="module")
def arrays() -> MarketArrays:
    return generate_arrays(markets=2, users=300, own_items=20, shared_items=20, history=8, groups=4, seed=3)


def held_out(arrays: MarketArrays, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A slot of the user's market that is not in the history, for every user."""
    rng = np.random.default_rng(seed)
    rows, slots = np.arange(arrays.n_rows), []
    for row in rows:
        market = int(np.searchsorted(arrays.user_offsets, row, side="right")) - 1
        own = arrays.slots[arrays.indptr[row] : arrays.indptr[row + 1]]
        there = np.arange(arrays.slot_offsets[market], arrays.slot_offsets[market + 1])
        slots.append(rng.choice(np.setdiff1d(there, own)))
    return rows, np.array(slots)


def test_pairs_are_of_a_user_and_rivals_of_his_market(arrays: MarketArrays) -> None:
    rows, slots = held_out(arrays)
    found = held_out_pairs(arrays, rows, slots, np.ones(60, bool), at_most=10_000, rivals=9, seed=1)
    assert found.pairs.shape == (600, 2)
    assert found.rivals.shape == (600, 9)
    possible = set()
    for row, slot in zip(rows, slots, strict=True):
        history = arrays.items[arrays.indptr[row] : arrays.indptr[row + 1]]
        possible |= {(int(item), int(arrays.slot_items[slot])) for item in history}
    assert {tuple(pair) for pair in found.pairs.tolist()} <= possible
    own_of = [set(arrays.slot_items[arrays.market_slots(m)].tolist()) for m in (0, 1)]
    for (history, held), others in zip(found.pairs.tolist(), found.rivals.tolist(), strict=True):
        markets = [own for own in own_of if {history, held} <= own]
        assert any(set(others) <= own for own in markets)
        assert history not in others


def test_rivals_come_by_train_count(arrays: MarketArrays) -> None:
    """Of the rivals that are not the held-out item, an item's share is its count among the market's others."""
    market = arrays.market_slots(0)
    rows = np.zeros(4000, np.int64)
    history = arrays.slots[arrays.indptr[0] : arrays.indptr[1]]
    slot = np.setdiff1d(np.arange(market.start, market.stop), history)[0]
    found = held_out_pairs(arrays, rows, np.full(4000, slot), np.ones(60, bool), at_most=4000, rivals=50, seed=2)
    items = arrays.slot_items[market]
    clear = ~np.isin(items, [*arrays.slot_items[history], arrays.slot_items[slot]])
    drawn = np.bincount(found.rivals.ravel(), minlength=60)[items][clear]
    counts = arrays.slot_counts[market][clear]
    np.testing.assert_allclose(drawn / drawn.sum(), counts / counts.sum(), rtol=0.1)


def test_what_has_no_vector_or_no_history_is_skipped(arrays: MarketArrays, caplog: pytest.LogCaptureFixture) -> None:
    rows, slots = held_out(arrays)
    has_vector = np.arange(60) % 3 > 0
    with caplog.at_level(logging.INFO):
        found = held_out_pairs(arrays, rows, slots, has_vector, at_most=10_000, rivals=5, seed=1)
    assert 0 < len(found.pairs) < 600
    assert has_vector[found.pairs].all()
    assert has_vector[found.rivals].all()
    assert f"{len(found.pairs)} held-out pairs; {600 - len(found.pairs)} skipped" in caplog.text
    alone = MarketArrays(
        np.array([0, 0, 1]), np.array([0], np.int32), np.array([0, 2]), np.array([0, 1], np.int32),
        np.array([0, 2]), np.array([1, 0], np.int32), 2,
    )  # fmt: skip
    both = held_out_pairs(alone, np.array([0, 1]), np.array([1, 1]), np.ones(2, bool), rivals=3, seed=0)
    assert both.pairs.tolist() == [[0, 1]]
    assert both.rivals.tolist() == [[1, 1, 1]]  # the only item with a count is the history item: ties


def test_the_order_of_the_pairs_does_not_matter(arrays: MarketArrays) -> None:
    rows, slots = held_out(arrays)
    first = held_out_pairs(arrays, rows, slots, np.ones(60, bool), at_most=100, rivals=5, seed=1)
    turned = held_out_pairs(arrays, rows[::-1], slots[::-1], np.ones(60, bool), at_most=100, rivals=5, seed=1)
    other = held_out_pairs(arrays, rows, slots, np.ones(60, bool), at_most=100, rivals=5, seed=2)
    assert first.pairs.shape == (100, 2)
    assert first.pairs.tobytes() == turned.pairs.tobytes()
    assert first.rivals.tobytes() == turned.rivals.tobytes()
    assert first.pairs.tobytes() != other.pairs.tobytes()


@pytest.mark.parametrize("changed", [{"at_most": 0}, {"rivals": 0}])
def test_impossible_sizes_are_refused(arrays: MarketArrays, changed: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="at_most >= 1 and rivals >= 1"):
        held_out_pairs(arrays, np.array([0]), np.array([1]), np.ones(60, bool), seed=0, **changed)
