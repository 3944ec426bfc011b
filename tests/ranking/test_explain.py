from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_workspace import publish_served, publish_shop

from m3rec_spark.data.arrays import open_arrays
from m3rec_spark.errors import CorruptTableError
from m3rec_spark.ranking.explain import open_shoppers, shares
from m3rec_spark.ranking.pack import save_shoppers
from m3rec_spark.ranking.scorers import CosineScorer, EaseScorer, M3RecScorer, published_scorer


def test_shares_by_hand(tmp_path: Path) -> None:
    """x bought a and b. (B V)_a = (2, 0), b has an empty row, U-Loca (0, 1): u = (2, 1); c is (1, 0) at length 1."""
    workspace = publish_shop(tmp_path / "w", [("M", "x", "a"), ("M", "x", "b"), ("M", "y", "c")])
    arrays, folder = open_arrays(workspace.folder("arrays")), tmp_path / "model"
    folder.mkdir()
    for name, value in {
        "item_vectors": [[0, 1], [1, 1], [3, 0]], "history_vectors": [[2, 0], [0, 0], [5, 5]],
        "history_weights": [1, 0, 1], "user_vectors": [[0, 1], [0, 0]], "ease_weights": [0.5],
    }.items():  # fmt: skip
        np.save(folder / f"{name}.npy", np.array(value, np.float32))
    ease = tmp_path / "ease" / "market-00000"
    ease.mkdir(parents=True)
    np.save(ease / "rows-000000000.npy", np.array([[0, 0.1, 0.2], [0.1, 0, 0.6], [0, 0, 0]], np.float32))
    scorer = M3RecScorer(CosineScorer(str(folder)), EaseScorer(str(ease.parent)))
    local = np.array([0, 1], np.float32)
    found = shares(scorer, arrays, 0, np.array([0, 1]), local, np.array([2]))
    np.testing.assert_allclose(found.history, [[2 / np.sqrt(5) + 0.5 * 0.2, 0.5 * 0.6]], rtol=1e-6)
    np.testing.assert_allclose(found.local, [0], atol=1e-12)
    user = scorer.score(arrays, 0, np.array([0], np.int32))
    np.testing.assert_allclose(found.history.sum() + found.local.sum(), user[0, 2], rtol=1e-6)


def test_shares_sum_to_the_score_for_all_pairs(tmp_path: Path) -> None:
    workspace = publish_served(tmp_path)
    arrays = open_arrays(workspace.folder("arrays"))
    scorer = published_scorer(str(workspace.folder("model")), str(workspace.folder("ease")))
    pairs = 0
    for market in range(arrays.n_markets):
        users = np.arange(np.diff(arrays.user_offsets)[market], dtype=np.int32)
        scores, local = scorer.score(arrays, market, users), scorer.cosine.local(arrays, market, users)
        for user in users:
            history = arrays.history(market, users[user : user + 1]).indices.astype(np.intp)
            parts = shares(scorer, arrays, market, history, local[user], np.arange(scores.shape[1]))
            assert parts.history.shape == (scores.shape[1], len(history))
            np.testing.assert_allclose(parts.history.sum(axis=1) + parts.local, scores[user], atol=1e-6)
            pairs += scores.shape[1]
    assert pairs > 1000


def test_a_user_without_anything_has_shares_of_zero(tmp_path: Path) -> None:
    workspace = publish_served(tmp_path)
    arrays = open_arrays(workspace.folder("arrays"))
    scorer = published_scorer(str(workspace.folder("model")), str(workspace.folder("ease")))
    found = shares(scorer, arrays, 2, np.empty(0, np.intp), np.zeros(5, np.float32), np.array([1]))
    assert found.history.shape == (1, 0)
    assert found.local.tolist() == [0]


def test_shoppers_are_the_cells_of_the_grams(tmp_path: Path) -> None:
    workspace = publish_served(tmp_path)
    arrays = open_arrays(workspace.folder("arrays"))
    place = tmp_path / "shoppers"
    place.mkdir()
    save_shoppers(arrays, place)
    shoppers = open_shoppers(place)
    grams = np.zeros((arrays.n_markets, arrays.n_items, arrays.n_items), int)
    for market in range(arrays.n_markets):
        X = arrays.history(market).toarray().astype(int)
        items = arrays.slot_items[arrays.market_slots(market)]
        grams[market][np.ix_(items, items)] = X.T @ X
    for one in range(arrays.n_items):
        for other in range(arrays.n_items):
            expected = {m: int(g[one, other]) for m, g in enumerate(grams) if g[one, other]}
            assert shoppers.together(arrays, one, other) == expected
    assert any(len(np.flatnonzero(grams[:, a, b])) > 1 for a in range(15, 25) for b in range(a))


def test_damaged_shoppers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CorruptTableError, match="shoppers by item"):
        open_shoppers(tmp_path)
