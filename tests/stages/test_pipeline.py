"""All stages on a small generated shop: what runs, what is skipped, what is refused, and that it repeats itself."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from m3rec_spark.config import Config, load
from m3rec_spark.errors import CorruptTableError, MissingTableError
from m3rec_spark.schema import STAGES
from m3rec_spark.stages.pipeline import plan_pretrain, run_stages, stage_keys
from m3rec_spark.tables import Workspace
from m3rec_spark.tracking.runs import tracking_uri

TINY = [
    "demo.scale=0.02", "demo.groups=6", "candidates.negatives=20", "walks.per_item=2", "walks.length=8",
    "skipgram.dimension=8", "skipgram.epochs=1", "train.epochs=2", "train.batch_size=256", "train.threads=1",
]  # fmt: skip


def config(*overrides: str) -> Config:
    return load(None, [*TINY, *overrides])


@pytest.fixture(scope="module")
def ran(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A workspace in which the whole pipeline ran once, tracked."""
    workspace = Workspace(tmp_path_factory.mktemp("pipeline") / "ws")
    run_stages(STAGES, config(), workspace)
    return workspace


def evaluation(workspace: Workspace) -> dict[str, Any]:
    return json.loads((workspace.root / "reports" / "evaluate.json").read_text())


def test_the_report_has_every_model_market_and_metric(ran: Workspace) -> None:
    rows = evaluation(ran)["rows"]
    seen = {(row["model"], row["market"], row["split"], row["metric"]) for row in rows}
    for model in ("m3rec", "ease", "popularity"):
        for market in ("M1", "M2", "M3", "M4", "M5"):
            for split in ("valid", "test", "all"):
                for metric in ("mrr", "ndcg_10", "hr_10"):
                    assert {(model, market, split, metric), (model, market, split, f"full_{metric}")} <= seen
    assert all(0 <= row["value"] <= 1 for row in rows)


def test_the_run_is_in_mlflow_with_a_child_per_stage(ran: Workspace) -> None:
    client = MlflowClient(tracking_uri(None, ran.root))
    experiment = client.get_experiment_by_name("m3rec_spark")
    runs = client.search_runs([experiment.experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.run_name for run in parents] == ["m3rec run"]
    assert parents[0].data.params["ease.lambda_f"] == "30.0"
    children = {run.info.run_name: run for run in runs if run not in parents}
    assert set(children) == set(STAGES)
    assert all(run.info.status == "FINISHED" for run in runs)
    assert "M1/ndcg_10" in children["evaluate"].data.metrics
    history = client.get_metric_history(children["train"].info.run_id, "M1/valid_ndcg_10")
    assert [point.step for point in history] == [1, 2]


def test_what_is_fresh_is_skipped(ran: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    before = {name: ran.manifest(name) for name in ("interactions", "similarity", "model", "metrics")}
    with caplog.at_level(logging.INFO, logger="m3rec_spark"):
        run_stages(STAGES, config(), ran)
    skipped = [r.getMessage() for r in caplog.records if "fresh, skipped" in r.getMessage()]
    assert [message.split(":")[0] for message in skipped] == list(STAGES)
    assert {name: ran.manifest(name) for name in before} == before


def test_a_changed_setting_makes_its_stage_and_the_later_ones_stale(ran: Workspace) -> None:
    changed = config("ease.lambda_f=20")
    with pytest.raises(MissingTableError, match=r"table 'gram'.* is stale: .*`m3rec pretrain`"):
        run_stages(("train",), changed, ran)
    old, new = stage_keys(config(), "source"), stage_keys(changed, "source")
    assert [stage for stage in STAGES if old[stage] != new[stage]] == ["pretrain", "train", "evaluate"]


def test_memory_and_device_do_not_make_tables_stale() -> None:
    elsewhere = config("ease.memory_gb=100", "train.device=cpu", "spark.driver_memory=9g", "tracking.uri=http://x")
    assert stage_keys(elsewhere, "source") == stage_keys(config(), "source")


def test_a_damaged_table_is_refused_with_the_stage_to_run(ran: Workspace) -> None:
    file = next(ran.folder("similarity").glob("*.parquet"))
    content = file.read_bytes()
    try:
        file.write_bytes(content[:-10])
        with pytest.raises(CorruptTableError, match=r"'similarity'.*`m3rec pretrain --force`"):
            run_stages(("train",), config("train.epochs=1"), ran)
    finally:
        file.write_bytes(content)


def test_the_same_seed_twice_gives_identical_metrics(ran: Workspace, spark: Any, tmp_path: Path) -> None:
    again = Workspace(tmp_path / "ws")
    run_stages(STAGES, config("tracking.enabled=false"), again)
    assert evaluation(again)["rows"] == evaluation(ran)["rows"]
    assert evaluation(again)["contract"] == evaluation(ran)["contract"]


def test_an_unreachable_server_does_not_lose_the_training(ran: Workspace, spark: Any) -> None:
    run_stages(("train",), config("tracking.uri=http://127.0.0.1:9"), ran, force=True)
    assert ran.state(
        "model", stage_keys(config(), json.loads((ran.root / "source.json").read_text())["digest"])["train"]
    )


def test_the_plan_of_pretrain_on_a_prepared_workspace(ran: Workspace) -> None:
    text = plan_pretrain(config(), ran)
    assert "<- chosen" in text
    with pytest.raises(MissingTableError, match="Run `m3rec prepare`"):
        plan_pretrain(config("demo.seed=8"), ran)
