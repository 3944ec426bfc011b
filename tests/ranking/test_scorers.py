from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
from small_workspace import publish_ease, publish_model, publish_random_shop, publish_shop

from m3rec_spark.data.arrays import MarketArrays, open_arrays
from m3rec_spark.errors import CorruptTableError
from m3rec_spark.ranking.scorers import CosineScorer, EaseScorer, M3RecScorer, PopularityScorer, Scorer
from m3rec_spark.similarity.weights import MarketItems, publish_sparse
from m3rec_spark.tables import Workspace


@pytest.fixture
def shop(tmp_path: Path) -> tuple[Workspace, MarketArrays]:
    workspace = publish_random_shop(tmp_path / "w")
    return workspace, open_arrays(workspace.folder("arrays"))


def all_users(arrays: MarketArrays, market: int) -> np.ndarray:
    return np.arange(np.diff(arrays.user_offsets)[market], dtype=np.int32)


def test_ease_by_hand(tmp_path: Path) -> None:
    workspace = publish_shop(tmp_path / "w", [("M", "x", "a"), ("M", "x", "c"), ("M", "y", "b"), ("N", "z", "d")])
    weights = np.array([[0, 1, 2, 9], [3, 0, 4, 9], [5, 6, 0, 9], [9, 9, 9, 0]])
    scorer = EaseScorer(publish_ease(workspace, weights))
    scores = scorer.score(open_arrays(workspace.folder("arrays")), 0, np.array([1, 0], np.int32))
    assert scores.tolist() == [[3, 0, 4], [0 + 5, 1 + 6, 2 + 0]]  # y: row b; x: rows a + c; d is not sold in M


def test_ease_is_history_times_weights(shop: tuple[Workspace, MarketArrays]) -> None:
    workspace, arrays = shop
    weights = np.random.default_rng(1).normal(size=(arrays.n_items, arrays.n_items)).astype(np.float32)
    scorer = EaseScorer(publish_ease(workspace, weights))
    x = np.zeros((arrays.n_rows, arrays.n_items))
    for row in range(arrays.n_rows):
        x[row, arrays.items[arrays.indptr[row] : arrays.indptr[row + 1]]] = 1
    for market in range(arrays.n_markets):
        rows = slice(*arrays.user_offsets[market : market + 2])
        columns = arrays.slot_items[arrays.market_slots(market)]
        scores = scorer.score(arrays, market, all_users(arrays, market))
        np.testing.assert_allclose(scores, (x[rows] @ weights)[:, columns], rtol=0, atol=1e-5)


def test_popularity_counts_train_pairs(tmp_path: Path) -> None:
    train = [("M", "x", "a"), ("M", "y", "a"), ("M", "y", "b"), ("N", "z", "b")]
    workspace = publish_shop(tmp_path / "w", train, [("M", "x", "c", "test")])
    arrays = open_arrays(workspace.folder("arrays"))
    assert PopularityScorer().score(arrays, 0, np.array([0, 1], np.int32)).tolist() == [[2, 1, 0], [2, 1, 0]]


def test_m3rec_is_the_cosine_user_by_user(shop: tuple[Workspace, MarketArrays]) -> None:
    workspace, arrays = shop
    scorer = CosineScorer(publish_model(workspace, arrays))
    item_vectors, history_vectors, weights, user_vectors = (
        np.load(Path(scorer.folder) / f"{name}.npy").astype(np.float64)
        for name in ("item_vectors", "history_vectors", "history_weights", "user_vectors")
    )
    for market in range(arrays.n_markets):
        scores = scorer.score(arrays, market, all_users(arrays, market))
        slots = range(arrays.slot_offsets[market], arrays.slot_offsets[market + 1])
        for user in all_users(arrays, market):
            row = arrays.user_offsets[market] + user
            history = arrays.slots[arrays.indptr[row] : arrays.indptr[row + 1]]
            u = user_vectors[row].copy()
            if weights[history].sum() > 0:
                u += history_vectors[history].sum(axis=0) / weights[history].sum()
            for local, slot in enumerate(slots):
                v = item_vectors[slot]
                expected = u @ v / np.linalg.norm(u) / np.linalg.norm(v)
                assert scores[user, local] == pytest.approx(expected, abs=1e-6)


def test_m3rec_zero_vectors_score_zero_and_nan_shows(shop: tuple[Workspace, MarketArrays]) -> None:
    workspace, arrays = shop
    folder = Path(publish_model(workspace, arrays))
    vectors = np.load(folder / "item_vectors.npy")
    vectors[0], vectors[1, 2] = 0, np.nan
    np.save(folder / "item_vectors.npy", vectors)
    scores = CosineScorer(str(folder)).score(arrays, 0, all_users(arrays, 0))
    assert (scores[:, 0] == 0).all()
    assert np.isnan(scores[:, 1]).all()
    assert not np.isnan(scores[:, 2:]).any()


@pytest.mark.parametrize("model", ["ease", "m3rec_cosine", "popularity"])
def test_a_users_scores_do_not_depend_on_the_block(shop: tuple[Workspace, MarketArrays], model: str) -> None:
    workspace, arrays = shop
    scorers: dict[str, Scorer] = {
        "ease": EaseScorer(publish_ease(workspace, np.random.default_rng(1).normal(size=(arrays.n_items,) * 2))),
        "m3rec_cosine": CosineScorer(publish_model(workspace, arrays, dimension=37)),
        "popularity": PopularityScorer(),
    }
    scorer = pickle.loads(pickle.dumps(scorers[model]))
    users = all_users(arrays, 1)
    together = scorer.score(arrays, 1, users)
    assert together.dtype == np.float32
    for size in (1, 7):
        apart = [scorer.score(arrays, 1, users[start : start + size]) for start in range(0, len(users), size)]
        np.testing.assert_array_equal(together, np.concatenate(apart))


def test_a_model_of_another_workspace_is_refused(shop: tuple[Workspace, MarketArrays], tmp_path: Path) -> None:
    other = publish_shop(tmp_path, [("M", "x", "a"), ("M", "x", "c"), ("M", "y", "b")])
    scorer = EaseScorer(publish_ease(other, np.zeros((3, 3))))
    with pytest.raises(CorruptTableError, match="3 items in market 0"):
        scorer.score(shop[1], 0, all_users(shop[1], 0))
    with pytest.raises(CorruptTableError, match="no rows of market 1"):
        scorer.score(shop[1], 1, all_users(shop[1], 1))


def test_sparse_weights_score_as_dense_ones(shop: tuple[Workspace, MarketArrays], tmp_path: Path) -> None:
    workspace, arrays = shop
    weights = np.random.default_rng(1).normal(size=(arrays.n_items, arrays.n_items)).astype(np.float32)
    weights[weights < 1] = 0
    publish_sparse(sp.csr_matrix(weights), MarketItems(arrays.slot_items, arrays.slot_offsets), tmp_path)
    dense, thin = EaseScorer(publish_ease(workspace, weights)), EaseScorer(str(tmp_path))
    for market in range(arrays.n_markets):
        users = all_users(arrays, market)
        np.testing.assert_allclose(
            thin.score(arrays, market, users), dense.score(arrays, market, users), rtol=1e-6, atol=1e-6
        )


def test_m3rec_is_the_cosine_plus_the_markets_share_of_ease(shop: tuple[Workspace, MarketArrays]) -> None:
    workspace, arrays = shop
    weights = np.random.default_rng(1).normal(size=(arrays.n_items, arrays.n_items)).astype(np.float32)
    cosine, ease = CosineScorer(publish_model(workspace, arrays)), EaseScorer(publish_ease(workspace, weights))
    shares = np.array([0.5, *[0.0] * (arrays.n_markets - 1)], np.float32)
    np.save(Path(cosine.folder) / "ease_weights.npy", shares)
    for market, share in enumerate(shares):
        users = all_users(arrays, market)
        expected = cosine.score(arrays, market, users) + share * ease.score(arrays, market, users)
        assert np.array_equal(M3RecScorer(cosine, ease).score(arrays, market, users), expected)
        assert np.array_equal(
            M3RecScorer(cosine, None).score(arrays, market, users), cosine.score(arrays, market, users)
        )
