"""The pretrain stage on a small hand-made workspace: what it publishes, and that it refuses before it computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyspark.sql import SparkSession
from small_workspace import publish_random_shop, publish_shop

from m3rec_spark.config import load
from m3rec_spark.data.arrays import open_arrays
from m3rec_spark.schema import TABLES, CapacityError, DataError
from m3rec_spark.similarity.ease import similarity_matrix
from m3rec_spark.similarity.walks import walk_matrix
from m3rec_spark.stages import pretrain
from m3rec_spark.stages.context import Context
from m3rec_spark.tables import Workspace
from m3rec_spark.tracking.runs import Tracker

KEY = "a" * 64
SETTINGS = [
    "ease.lambda_f=2", "ease.epsilon=0.05", "gram.tile=8", "gram.pairs_per_task=60", "walks.per_item=4",
    "walks.length=6", "skipgram.dimension=8", "skipgram.shared=16", "skipgram.batch_walks=32", "skipgram.epochs=2",
    "train.device=cpu",
]  # fmt: skip


class Recorder(Tracker):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: dict[str, list[float]] = {}

    def metrics(self, values: Any, step: int | None = None) -> None:
        for name, value in values.items():
            self.logged.setdefault(name, []).append(value)


def run(workspace: Workspace, *overrides: str) -> Recorder:
    tracker = Recorder()
    pretrain.run(Context(load(overrides=[*SETTINGS, *overrides]), workspace, tracker, KEY))
    return tracker


@pytest.fixture(scope="module")
def done(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, Recorder]:
    workspace = publish_random_shop(tmp_path_factory.mktemp("pretrain"))
    return workspace, run(workspace)


def train_matrix(workspace: Workspace) -> np.ndarray:
    arrays = open_arrays(workspace.folder("arrays"))
    X = np.zeros((arrays.n_rows, arrays.n_items))
    X[np.repeat(np.arange(arrays.n_rows), np.diff(arrays.indptr)), arrays.items] = 1
    return X


def test_everything_is_published(done: tuple[Workspace, Recorder]) -> None:
    workspace, _ = done
    tables = [name for name, table in TABLES.items() if table.stage == "pretrain"]
    assert tables == ["gram", "ease", "similarity", "walks", "item_vectors"]
    assert [workspace.state(name, KEY) for name in tables] == ["fresh"] * 5


def test_gram_counts_train_pairs_only(done: tuple[Workspace, Recorder]) -> None:
    workspace, _ = done
    X = train_matrix(workspace)
    gram = workspace.read_arrow("gram")
    found = np.zeros((X.shape[1], X.shape[1]))
    np.add.at(found, (gram["item_a"].to_numpy(), gram["item_b"].to_numpy()), gram["count"].to_numpy())
    np.testing.assert_array_equal(found, np.triu(X.T @ X))
    assert len(set(gram["market"].to_pylist())) == 3


def test_ease_is_eq_4(done: tuple[Workspace, Recorder]) -> None:
    workspace, _ = done
    X = train_matrix(workspace)
    C = np.linalg.inv(X.T @ X + 2 * np.eye(X.shape[1]))
    expected = np.eye(len(C)) - C / np.diag(C)
    weights = np.load(workspace.folder("ease") / "weights.npy")
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    header = json.loads((workspace.folder("ease") / "ease.json").read_text())
    assert (header["lambda_f"], header["n_items"]) == (2.0, X.shape[1])
    assert 0 <= header["certificate"] < 1e-10


def test_similarity_is_eq_7(done: tuple[Workspace, Recorder]) -> None:
    workspace, _ = done
    weights = np.load(workspace.folder("ease") / "weights.npy")
    kept = np.where(weights >= 0.05, weights, 0)
    sums = kept.sum(axis=1, keepdims=True)
    expected = np.divide(kept, sums, out=np.zeros_like(kept), where=sums > 0)
    found = similarity_matrix(workspace.read_arrow("similarity"), len(weights)).toarray()
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (sums == 0).any()  # the item that was never sold


def test_walks_step_on_edges(done: tuple[Workspace, Recorder]) -> None:
    workspace, _ = done
    X = train_matrix(workspace)
    A = X.T @ X - np.diag(X.sum(axis=0))
    walks = walk_matrix(workspace.read_arrow("walks"))
    assert walks.shape == (4 * (A.sum(axis=1) > 0).sum(), 6)
    assert (A[walks[:, :-1], walks[:, 1:]] > 0).all()


def test_vectors_of_walked_items_only(done: tuple[Workspace, Recorder]) -> None:
    workspace, _ = done
    X = train_matrix(workspace)
    neighbours = (X.T @ X).sum(axis=1) - X.sum(axis=0)
    table = workspace.read_arrow("item_vectors")
    assert table["item"].to_pylist() == np.flatnonzero(neighbours).tolist()
    vectors = np.array(table["vector"].to_pylist())
    assert vectors.shape == (len(table), 8)
    assert np.isfinite(vectors).all()


def test_report_and_metrics(done: tuple[Workspace, Recorder]) -> None:
    workspace, tracker = done
    report = json.loads((workspace.root / pretrain.REPORT).read_text())
    assert report["items_without_neighbour"] == report["items"] - report["item_vectors"] == 1
    assert report["gram_cells"] == len(workspace.read_arrow("gram"))
    assert report["similarity_entries"] == len(workspace.read_arrow("similarity"))
    assert report["similarity_empty_rows"] >= 1
    assert report["walks"] == 4 * report["item_vectors"]
    assert report["skipgram_losses"] == tracker.logged["skipgram/loss"]
    assert len(report["skipgram_losses"]) == 2
    assert set(report["seconds"]) == set(report["bytes"]) | {"gram"} == {"gram", "ease", "walks", "skipgram"}
    assert tracker.logged["pretrain/ease_seconds"] == [report["seconds"]["ease"]]
    assert not list((workspace.root / "_scratch").iterdir())


def test_same_again(spark: SparkSession, done: tuple[Workspace, Recorder], tmp_path: Path) -> None:
    """Another workspace, other tasks: the same content."""
    workspace, other = done[0], publish_random_shop(tmp_path)
    run(other, "gram.pairs_per_task=1000000")
    for name in ("similarity", "item_vectors"):
        assert other.read_arrow(name).equals(workspace.read_arrow(name))
    assert walk_matrix(other.read_arrow("walks")).tobytes() == walk_matrix(workspace.read_arrow("walks")).tobytes()


def test_too_large_a_catalogue_is_refused_before_anything_runs(tmp_path: Path) -> None:
    workspace = publish_random_shop(tmp_path)
    with pytest.raises(CapacityError, match=r"EASE on 31 items.*may take 1,000 .*clean.min_item_users"):
        run(workspace, "ease.memory_gb=0.000001")  # without a Spark session: none was asked for
    assert workspace.manifest("gram") is None


def test_no_two_items_of_a_user(tmp_path: Path) -> None:
    workspace = publish_shop(tmp_path, [("M1", "x", "a"), ("M1", "y", "b"), ("M2", "x", "a")])
    with pytest.raises(DataError, match="no user has two items"):
        run(workspace)
    assert workspace.manifest("gram") is None
