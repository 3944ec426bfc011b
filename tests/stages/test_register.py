from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from small_workspace import publish_served

from m3rec_spark.config import load
from m3rec_spark.errors import DataError, MissingTableError
from m3rec_spark.stages import register
from m3rec_spark.stages.context import Context
from m3rec_spark.tables import Workspace
from m3rec_spark.tracking.registry import CHALLENGER, CHAMPION, Registry
from m3rec_spark.tracking.runs import pipeline_run

CONTRACT = {
    "sha256": "c" * 64, "name": "standard", "negatives": 9, "seen": "excluded",
    "counts": {"positives": 55, "valid": 30, "test": 25, "cold": 1},
}  # fmt: skip
RANKED = {"n": 8, "half_width": 0.02}


def write_report(
    workspace: Workspace, figures: dict[str, float], key: str, model: str = "m3rec", **contract: Any
) -> None:
    rows = [
        {
            "model": model,
            "market": market,
            "split": "test",
            "metric": "ndcg_10",
            "value": value,
            "n": 8,
            "half_width": 0.02,
        }
        for market, value in figures.items()
    ]
    whole = CONTRACT | contract
    path = workspace.root / "reports" / "evaluate.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"key": key, "sha256": whole["sha256"], "contract": whole, "rows": rows}))


GOOD = {"a": 0.5, "b": 0.4, "ü": 0.3, "mean": 0.4, "all": 0.42}


class Shop:
    """A workspace with a served model, and a registry on SQLite."""

    def __init__(self, root: Path) -> None:
        self.workspace, self.uri = publish_served(root / "w"), f"sqlite:///{root / 'mlflow.db'}"
        self.registry = Registry.open("m3rec", self.uri, None)
        write_report(self.workspace, GOOD, "k1")

    def promote(self, key: str, dry_run: bool = False) -> tuple[bool, list[Any]]:
        with pipeline_run(self.uri, "e", "promote", self.workspace.root) as tracker:
            return register.promote(Context(load(), self.workspace, tracker, key), self.registry, dry_run)

    def version(self, alias: str) -> int | None:
        found = self.registry.holder(alias)
        return None if found is None else int(found.version)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def test_from_the_first_champion_to_a_refusal_and_back(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    assert shop.promote("k1", dry_run=True) == (True, [])
    assert (shop.version(CHALLENGER), shop.version(CHAMPION)) == (1, None)
    assert shop.promote("k1") == (True, [])
    assert shop.version(CHAMPION) == 1  # registered once only

    write_report(shop.workspace, GOOD | {"ü": 0.28, "b": 0.45, "mean": 0.41}, "k2")
    passed, verdicts = shop.promote("k2")
    assert not passed
    assert [(v.market, v.passed) for v in verdicts] == [("mean", True), ("a", True), ("b", True), ("ü", False)]
    assert (shop.version(CHALLENGER), shop.version(CHAMPION)) == (2, 1)

    write_report(shop.workspace, GOOD | {"b": 0.45, "mean": 0.417}, "k3")
    assert shop.promote("k3", dry_run=True)[0]
    assert shop.version(CHAMPION) == 1
    assert shop.promote("k3")[0]
    assert shop.version(CHAMPION) == 3
    assert shop.registry.rollback() == ("3", "1")
    assert shop.version(CHAMPION) == 1

    monkeypatch.setenv("MLFLOW_TRACKING_URI", shop.uri)
    mlflow.set_tracking_uri(None)
    answer = mlflow.pyfunc.load_model("models:/m3rec@champion").predict(pd.DataFrame({"market": ["b"]}))
    assert answer["status"].tolist() == ["popular"]


def test_an_artifact_that_does_not_answer_never_serves(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = register.smoke

    def wrong(recommender: Any) -> Any:
        requests, expected = whole(recommender)
        return requests, {**expected, "items": [items[::-1] for items in expected["items"]]}

    monkeypatch.setattr(register, "smoke", wrong)
    with pytest.raises(DataError, match="other lists than the model that was packed"):
        shop.promote("k1")
    assert (shop.version(CHALLENGER), shop.version(CHAMPION)) == (1, None)


def test_other_contracts_are_never_compared(shop: Shop) -> None:
    shop.promote("k1")
    write_report(shop.workspace, GOOD, "k2", sha256="d" * 64, negatives=5)
    with pytest.raises(DataError, match="negatives: 5 and 9"):
        shop.promote("k2")
    assert shop.version(CHAMPION) == 1


def test_what_was_not_evaluated_is_not_registered(shop: Shop) -> None:
    write_report(shop.workspace, GOOD, "k1", model="ease")
    with pytest.raises(DataError, match="'m3rec' was not evaluated"):
        shop.promote("k1")
    path = shop.workspace.root / "reports" / "evaluate.json"
    write_report(shop.workspace, GOOD, "another")
    for spoil in (lambda: None, lambda: path.write_text("{broken"), path.unlink):
        spoil()
        with pytest.raises(MissingTableError, match="missing, damaged or of another model: run `m3rec evaluate` first"):
            shop.promote("k1")


def test_other_figures_or_vectors_are_another_version(shop: Shop) -> None:
    """The same key: a training that was forced, or an evaluation that was made again."""
    shop.promote("k1", dry_run=True)
    write_report(shop.workspace, GOOD | {"mean": 0.41}, "k1")
    shop.promote("k1", dry_run=True)
    assert shop.version(CHALLENGER) == 2
    vectors = shop.workspace.folder("model") / "user_vectors.npy"
    np.save(vectors, np.load(vectors) * 2)
    shop.promote("k1", dry_run=True)
    assert shop.version(CHALLENGER) == 3
    np.save(vectors, np.load(vectors) / 2)
    shop.promote("k1", dry_run=True)
    assert shop.version(CHALLENGER) == 2  # found again, and it is the challenger now


def test_the_card_says_what_was_measured(shop: Shop) -> None:
    shop.promote("k1")
    card = (shop.workspace.root / "reports" / "model_card.md").read_text()
    assert "3 markets: a, b, ü" in card
    assert "| a | 8 | 50.0 ± 2.0 |" in card
    assert "| mean |  | 40.0 ± 2.0 |" in card
    assert "30 validation, 25 test" in card
    assert "Licence of the data: not stated (registry.data_license)" in card
