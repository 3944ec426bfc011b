"""Against a real MLflow on SQLite, a port where nothing listens, and a server that dies half way."""

from __future__ import annotations

import json
import logging
import socket
from pathlib import Path

import mlflow
import pytest
from matplotlib.figure import Figure
from mlflow import MlflowClient

from m3rec_spark.tracking.runs import Tracker, pipeline_run, tracking_uri


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace whose MLflow database is made once: the migrations take seconds."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture(autouse=True)
def _no_uri_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def children(client: MlflowClient, parent: str) -> dict[str, str]:
    experiment = client.get_run(parent).info.experiment_id
    found = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    return {run.info.run_name: run.info.run_id for run in found}


def test_a_pipeline_is_a_run_and_a_stage_its_child(store: Path) -> None:
    with pipeline_run(None, "shop", "m3rec run", store) as tracker:
        tracker.params({f"train.p{i}": i for i in range(120)})  # more than one batch
        with tracker.child("train") as child:
            child.metrics({"M1/ndcg_10": 0.25}, step=1)
            child.metrics({"M1/ndcg_10": 0.5}, step=2)
            child.figure(Figure(), "loss.png")
            child.json({"a": 1}, "settings.json")
            child.dataset("interactions", "d" * 64, rows=7)
    client = MlflowClient(tracking_uri(None, store))
    parent = client.get_run(tracker.run_id)
    assert parent.info.status == "FINISHED"
    assert len(parent.data.params) == 120
    assert parent.data.tags["m3rec_spark.version"]
    stage = client.get_run(children(client, tracker.run_id)["train"])
    assert [(m.step, m.value) for m in client.get_metric_history(stage.info.run_id, "M1/ndcg_10")] == [
        (1, 0.25),
        (2, 0.5),
    ]
    assert {file.path for file in client.list_artifacts(stage.info.run_id)} == {"loss.png", "settings.json"}
    logged = stage.inputs.dataset_inputs[0].dataset
    assert (logged.name, logged.digest, json.loads(logged.profile)) == ("interactions", "d" * 36, {"rows": 7})
    assert mlflow.active_run() is None  # nothing global is left behind


def test_a_failing_stage_is_marked_failed_and_its_error_passes(store: Path) -> None:
    with pytest.raises(RuntimeError, match="boom"), pipeline_run(None, "shop", "m3rec run", store) as tracker:
        with tracker.child("pretrain"):
            raise RuntimeError("boom")
    client = MlflowClient(tracking_uri(None, store))
    assert client.get_run(tracker.run_id).info.status == "FAILED"
    assert client.get_run(children(client, tracker.run_id)["pretrain"]).info.status == "FAILED"


def test_joins_the_callers_active_run_and_leaves_it_active(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", tracking_uri(None, store))
    mlflow.set_experiment("notebook")
    with mlflow.start_run() as mine:
        with pipeline_run("sqlite:////nowhere/else.db", "ignored", "m3rec run", store) as tracker:
            with tracker.child("train"):
                pass
        assert tracker.run_id == mine.info.run_id
        assert mlflow.active_run().info.run_id == mine.info.run_id
        assert MlflowClient().get_run(mine.info.run_id).info.status == "RUNNING"
    assert list(children(MlflowClient(), mine.info.run_id)) == ["train"]


def test_a_server_that_is_not_there_costs_a_warning_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as free:  # bound but not listening: refused at once
        free.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{free.getsockname()[1]}"
        with caplog.at_level(logging.WARNING), pipeline_run(uri, "shop", "m3rec run", tmp_path) as tracker:
            with tracker.child("train") as child:
                child.metrics({"loss": 1.0})
    assert not tracker.active
    ours = [r.getMessage() for r in caplog.records if r.name.startswith("m3rec_spark")]
    assert [message.split(" (")[0] for message in ours] == [f"MLflow at {uri} cannot be used"]


def test_a_server_that_dies_half_way_costs_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    calls = []

    class Dying:
        def log_batch(self, run_id: str, **_: object) -> None:
            calls.append(run_id)
            raise ConnectionError("gone")

    tracker = Tracker(Dying(), "run", "0")
    with caplog.at_level(logging.WARNING):
        tracker.metrics({"loss": 1.0})
        tracker.metrics({"loss": 0.5})
        tracker.json({}, "x.json")
    assert calls == ["run"]
    assert len(caplog.records) == 1
    assert "ConnectionError: gone" in caplog.text


def test_a_metric_that_is_no_number_is_left_out_and_said(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), pipeline_run(None, "shop", "m3rec run", store) as tracker:
        tracker.metrics({"gut@Köln/x": 1.0, "bad": float("nan"), "worse": float("inf")})
    logged = MlflowClient(tracking_uri(None, store)).get_run(tracker.run_id).data.metrics
    assert logged == {"gut_K_ln/x": 1.0}
    assert "metric bad is nan: not logged" in caplog.text


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        ("http://a", "http://b", "http://a"),  # the config wins
        (None, "http://b", "http://b"),
        (None, None, "sqlite:///{root}/mlflow.db"),
    ],
)
def test_which_store(
    given: str | None, environment: str | None, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if environment is not None:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", environment)
    assert tracking_uri(given, tmp_path) == expected.format(root=tmp_path)
