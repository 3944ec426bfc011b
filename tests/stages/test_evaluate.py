from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession
from small_workspace import KEY, publish, publish_ease, publish_model, publish_random_shop

from m3rec_spark.config import load
from m3rec_spark.data.arrays import open_arrays
from m3rec_spark.errors import CorruptTableError, MissingTableError
from m3rec_spark.evaluation.candidates import publish_candidates
from m3rec_spark.stages import evaluate
from m3rec_spark.stages.context import Context
from m3rec_spark.tables import Workspace
from m3rec_spark.tracking.runs import Tracker


class Notebook(Tracker):
    """A tracker that writes everything down."""

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, Any] = {}

    def metrics(self, values: Any, step: int | None = None) -> None:
        self.values.update(values)

    def figure(self, figure: Any, name: str) -> None:
        self.values[name] = figure


def context(workspace: Workspace, *overrides: str) -> Context:
    return Context(load(None, overrides), workspace, Notebook(), key="evaluate-key")


@pytest.fixture
def shop(spark: SparkSession, tmp_path: Path) -> Workspace:
    workspace = publish_random_shop(tmp_path / "w")
    publish_candidates(spark, workspace, KEY, negatives=6, seen="excluded", seed=1)
    arrays = open_arrays(workspace.folder("arrays"))
    publish_ease(workspace, np.random.default_rng(2).normal(size=(arrays.n_items, arrays.n_items)))
    publish_model(workspace, arrays)
    return workspace


def test_evaluate(shop: Workspace) -> None:
    first = context(shop)
    evaluate.run(first)
    report = json.loads((shop.root / "reports/evaluate.json").read_text(encoding="utf-8"))
    assert report["sha256"] == shop.manifest("candidates").extra["contract"]["sha256"]  # type: ignore[union-attr]
    assert {r["model"] for r in report["rows"]} == {"m3rec", "m3rec_cosine", "ease", "popularity"}
    assert {r["split"] for r in report["rows"]} == {"valid", "test", "all"}
    assert {r["market"] for r in report["rows"]} >= {"a", "b", "all", "mean"}
    assert all(0 <= r["value"] <= 1 for r in report["rows"])
    assert (
        sum(n for market, n in report["cold_positives"].items() if market != "all") == report["cold_positives"]["all"]
    )
    rows = [{name: value for name, value in row.items() if name != "half_width"} for row in report["rows"]]
    assert shop.read_arrow("metrics").to_pylist() == rows
    assert all(0 <= row["half_width"] < 1 for row in report["rows"])
    ranks = shop.read_arrow("ranks").to_pylist()
    assert len(ranks) == 4 * 55
    in_b = [r["rank"] for r in ranks if (r["model"], r["market"], r["half"]) == ("m3rec", 1, "test")]
    assert first.tracker.values["b/hr_10"] == pytest.approx(np.mean(np.array(in_b) <= 10))  # type: ignore[attr-defined]
    assert "ndcg_10_by_market.png" in first.tracker.values  # type: ignore[attr-defined]
    assert {shop.state(name, "evaluate-key") for name in ("ranks", "metrics")} == {"fresh"}
    assert "popularity" in (shop.root / "reports/evaluate.txt").read_text()

    before = (shop.root / "reports/evaluate.json").read_bytes()
    evaluate.run(context(shop, "evaluate.block=3"))
    assert (shop.root / "reports/evaluate.json").read_bytes() == before


def test_missing_model_names_the_stage(spark: SparkSession, tmp_path: Path) -> None:
    workspace = publish_random_shop(tmp_path / "w")
    publish_candidates(spark, workspace, KEY, negatives=6, seen="excluded", seed=1)
    with pytest.raises(MissingTableError, match="m3rec train"):
        evaluate.run(context(workspace))
    with pytest.raises(MissingTableError, match="m3rec pretrain"):
        evaluate.run(context(workspace, "evaluate.models=[ease]"))
    evaluate.run(context(workspace, "evaluate.models=[popularity]"))
    assert workspace.manifest("ranks").rows == 55  # type: ignore[union-attr]


def test_candidates_without_contract_are_refused(spark: SparkSession, tmp_path: Path) -> None:
    workspace = publish_random_shop(tmp_path / "w")
    publish(workspace, "candidates", [(0, 0, 0, "test", False, [1])])
    with pytest.raises(CorruptTableError, match="no evaluation contract"):
        evaluate.run(context(workspace, "evaluate.models=[popularity]"))
