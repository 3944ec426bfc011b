from __future__ import annotations

import numpy as np

from m3rec_spark.data.synthetic import generate_arrays

SIZES = {"markets": 3, "users": 200, "own_items": 30, "shared_items": 20, "history": 8.0, "groups": 6}


def test_shared_items_come_first_and_are_sold_everywhere() -> None:
    arrays = generate_arrays(**SIZES, seed=1)
    assert (arrays.n_markets, arrays.n_rows, arrays.n_items) == (3, 600, 20 + 3 * 30)
    for market in range(3):
        items = arrays.slot_items[arrays.market_slots(market)]
        assert items.tolist() == [*range(20), *range(20 + 30 * market, 50 + 30 * market)]


def test_histories_are_distinct_and_of_their_market() -> None:
    arrays = generate_arrays(**SIZES, seed=1)
    for row in range(arrays.n_rows):
        history = arrays.slots[arrays.indptr[row] : arrays.indptr[row + 1]]
        assert (np.diff(history) > 0).all()
        slots = arrays.market_slots(row // 200)
        assert len(history) > 0
        assert slots.start <= history[0]
        assert history[-1] < slots.stop
    np.testing.assert_array_equal(arrays.slot_counts, np.bincount(arrays.slots, minlength=150))
    assert 6 < np.diff(arrays.indptr).mean() < 10


def test_items_of_a_group_are_bought_together() -> None:
    """An item's 20 strongest neighbours hold more of its co-occurrences than the 20 most popular items would."""
    arrays = generate_arrays(markets=1, users=3000, own_items=100, shared_items=20, history=10.0, groups=12, seed=3)
    X = arrays.history(0).toarray()
    A = X.T @ X
    np.fill_diagonal(A, 0)
    shares = np.sort(A, axis=1)[:, ::-1] / np.maximum(A.sum(axis=1, keepdims=True), 1)
    popular = np.sort(A.sum(axis=1))[::-1] / A.sum()
    assert shares[:, :20].sum(axis=1).mean() > popular[:20].sum() + 0.15


def test_same_seed_same_arrays() -> None:
    one, again, other = (generate_arrays(**SIZES, seed=seed) for seed in (1, 1, 2))
    assert one.slots.tobytes() == again.slots.tobytes() != other.slots.tobytes()
    assert one.indptr.tobytes() == again.indptr.tobytes()
