"""Scorers of the baselines: the saved module and the saved vectors score as the module that was trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from small_workspace import publish_random_shop

from m3rec_spark.data.arrays import MarketArrays, open_arrays
from m3rec_spark.errors import CorruptTableError
from m3rec_spark.models.catalogue import build
from m3rec_spark.ranking.model_scorers import DotScorer, ModuleScorer, save_module

SETTINGS = {"dimension": 4, "widths": [6, 3], "dropout": 0.5}
USERS = np.array([3, 0, 7], np.int32)


@pytest.fixture
def shop(tmp_path: Path) -> tuple[str, MarketArrays]:
    folder = publish_random_shop(tmp_path / "w").folder("arrays")
    return str(folder), open_arrays(folder)


@pytest.mark.parametrize("name", ["neumf", "star", "forec"])
@pytest.mark.parametrize("items", [4096, 3])
def test_a_saved_module_scores_as_it_did(
    shop: tuple[str, MarketArrays], tmp_path: Path, name: str, items: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("m3rec_spark.ranking.model_scorers._ITEMS", items)
    folder, arrays = shop
    given = SETTINGS | ({"inner_rate": 0.1} if name == "forec" else {})
    module = build(name, arrays, given, seed=3).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    if name == "forec":
        module.fork()
    save_module(module, tmp_path, name, given)
    scorer = ModuleScorer(str(tmp_path), folder, name)
    for market in (0, 1):
        slots = torch.arange(*arrays.slot_offsets[market : market + 2])
        rows = torch.from_numpy(arrays.user_offsets[market] + USERS)
        with torch.no_grad():
            expected = module.scorer()(market, rows, slots).numpy()
        found = scorer.score(arrays, market, USERS)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(scorer.score(arrays, market, USERS[1:2])[0], found[1])  # alone: the same bits


def test_vectors_score_by_their_product(shop: tuple[str, MarketArrays], tmp_path: Path) -> None:
    _, arrays = shop
    rng = np.random.default_rng(0)
    users = rng.normal(size=(arrays.n_rows, 5)).astype(np.float32)
    items = rng.normal(size=(len(arrays.slot_items), 5)).astype(np.float32)
    np.save(tmp_path / "user_vectors.npy", users)
    np.save(tmp_path / "item_vectors.npy", items)
    found = DotScorer(str(tmp_path), "lightgcn").score(arrays, 1, USERS)
    expected = users[arrays.user_offsets[1] + USERS] @ items[arrays.market_slots(1)].T
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_damaged_module_is_told(shop: tuple[str, MarketArrays], tmp_path: Path) -> None:
    folder, arrays = shop
    save_module(build("neumf", arrays, SETTINGS, seed=3), tmp_path, "neumf", SETTINGS)
    (tmp_path / "weights.safetensors").write_bytes(b"cut")
    with pytest.raises(CorruptTableError, match="remove that folder and run `m3rec compare` again"):
        ModuleScorer(str(tmp_path), folder, "neumf").score(arrays, 0, USERS)
