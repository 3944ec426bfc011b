from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_workspace import publish_served

from m3rec_spark.data.arrays import MarketArrays, open_arrays
from m3rec_spark.data.synthetic import generate_arrays
from m3rec_spark.ranking import block_lists as module
from m3rec_spark.ranking.block_lists import block_lists
from m3rec_spark.ranking.scorers import CosineScorer, M3RecScorer, published_scorer
from m3rec_spark.ranking.topk import Lists, top_k


def exactly(scorer: M3RecScorer, arrays: MarketArrays, market: int, users: np.ndarray, k: int) -> Lists:
    """The scores of evaluation, sorted."""
    history = arrays.history(market, users).toarray() > 0
    sold = arrays.slot_counts[arrays.market_slots(market)] > 0
    return top_k(scorer.score(arrays, market, users), sold & ~history, k)


def assert_same(found: Lists, expected: Lists) -> None:
    for name in ("offsets", "items", "scores"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> tuple[M3RecScorer, MarketArrays]:
    workspace = publish_served(tmp_path_factory.mktemp("served"))
    scorer = published_scorer(str(workspace.folder("model")), str(workspace.folder("ease")))
    return scorer, open_arrays(workspace.folder("arrays"))


@pytest.mark.parametrize("market", [0, 1, 2])
@pytest.mark.parametrize("k", [1, 4, 40])
@pytest.mark.parametrize("tile", [3, 2048])
def test_lists_are_those_of_evaluation(
    served: tuple[M3RecScorer, MarketArrays], market: int, k: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a share of EASE (markets 0, 1) and without; lists shorter than k where the market has no more."""
    monkeypatch.setattr(module, "TILE", tile)
    monkeypatch.setattr(module, "SPARE", 2)
    scorer, arrays = served
    users = np.arange(np.diff(arrays.user_offsets)[market], dtype=np.int32)[::-1]
    assert_same(block_lists(scorer, arrays, market, users, k), exactly(scorer, arrays, market, users, k))


def shop(folder: Path, doubles: bool, zeros: bool) -> tuple[M3RecScorer, MarketArrays]:
    """600 items in two markets, d = 16; doubles: every vector stands for several items; zeros: users without any."""
    arrays, rng = generate_arrays(2, 60, 250, 50, history=8.0, groups=4, seed=1), np.random.default_rng(0)
    slots = len(arrays.slot_items)
    vectors = rng.normal(size=(slots, 16))
    if doubles:
        vectors = vectors[rng.integers(0, 40, slots)]
    files = {
        "item_vectors": vectors,
        "history_vectors": rng.normal(size=(slots, 16)) * (not zeros),
        "history_weights": np.ones(slots),
        "user_vectors": rng.normal(size=(arrays.n_rows, 16)) * (not zeros),
    }
    for name, array in files.items():
        np.save(folder / f"{name}.npy", array.astype(np.float32))
    return M3RecScorer(CosineScorer(str(folder)), None), arrays


@pytest.mark.parametrize(("doubles", "zeros"), [(False, False), (True, False), (False, True)])
def test_ties_are_settled_by_item(tmp_path: Path, doubles: bool, zeros: bool) -> None:
    """Equal vectors give equal scores in float32 and float64 alike, or differ in the last bit: never in the list."""
    scorer, arrays = shop(tmp_path, doubles, zeros)
    for market in (0, 1):
        users = np.arange(60, dtype=np.int32)
        assert_same(block_lists(scorer, arrays, market, users, 10), exactly(scorer, arrays, market, users, 10))


def test_near_ties_beyond_the_short_list_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """40 items within a few float32 steps of one another, in an order that float32 cannot tell."""
    scorer, arrays = shop(tmp_path, doubles=False, zeros=False)
    vectors = np.load(tmp_path / "item_vectors.npy")
    near = vectors[0] * (1 + 1e-7 * np.random.default_rng(3).normal(size=(40, 16)))
    vectors[:40] = near
    np.save(tmp_path / "item_vectors.npy", vectors)
    history = np.load(tmp_path / "history_vectors.npy")
    history[:] = vectors[0] + 0.01 * history
    np.save(tmp_path / "history_vectors.npy", history)
    np.save(tmp_path / "user_vectors.npy", np.zeros_like(np.load(tmp_path / "user_vectors.npy")))
    called: list[int] = []
    whole = module._exactly
    monkeypatch.setattr(module, "_exactly", lambda *given: called.append(len(given[3])) or whole(*given))
    monkeypatch.setattr(module, "SPARE", 4)
    users = np.arange(60, dtype=np.int32)
    assert_same(block_lists(scorer, arrays, 0, users, 10), exactly(scorer, arrays, 0, users, 10))
    assert sum(called) > 30


def test_a_market_without_users_or_pairs(served: tuple[M3RecScorer, MarketArrays]) -> None:
    scorer, arrays = served
    assert block_lists(scorer, arrays, 0, np.empty(0, np.int32), 3).offsets.tolist() == [0]
