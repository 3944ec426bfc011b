"""An executor, and the driver, lost in the middle of the sweep: the tiles end the same to the byte."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faults import Cluster, folder_bytes
from pyspark.sql import SparkSession

from m3rec_spark.similarity import sweep as module
from m3rec_spark.similarity.sweep_tiles import Run, Tiles, sweep_run

N = 70  # 5 tiles of 14


def slow_run(tiles: Tiles, step: int, run: Run) -> int:
    """Long enough that a kill hits tasks that have written and not ended."""
    failing = sweep_run(tiles, step, run)
    time.sleep(0.3)
    return failing


def sweep(spark: SparkSession, folder: Path) -> list[float]:
    weights = module.sweep(
        spark, folder / "gram", folder / "tiles", N, lambda_f=3.0, weights=np.ones(1), tile=14, key="k", cores=2
    )
    return [float(value) for value in weights.rows(40, 41)[0]]


def slow_sweep(spark: SparkSession, folder: Path) -> list[float]:
    with mock.patch.object(module, "sweep_run", slow_run):
        return sweep(spark, folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With the Gram of 50 random users."""
    X = (np.random.default_rng(1).random((50, N)) < 0.2).astype(np.int32)
    item_a, item_b = np.nonzero(np.triu(X.T @ X))
    columns = (
        np.zeros(len(item_a), np.int32),
        *(a.astype(np.int32) for a in (item_a, item_b, (X.T @ X)[item_a, item_b])),
    )
    (tmp_path / "gram").mkdir()
    table = pa.table(dict(zip(("market", "item_a", "item_b", "count"), columns, strict=True)))
    pq.write_table(table, tmp_path / "gram" / "part-0.parquet")
    return tmp_path


@pytest.fixture
def clean(spark: SparkSession, folder: Path) -> dict[str, bytes]:
    """The tiles of a sweep that nothing disturbs."""
    sweep(spark, folder)
    files = folder_bytes(folder / "tiles")
    (folder / "tiles").rename(folder / "clean")
    assert len(files) == 5 * 6 // 2 + 2
    return files


def test_a_lost_executor_changes_no_byte(cluster: Cluster, folder: Path, clean: dict[str, bytes]) -> None:
    outcome = cluster.run(__file__, "slow_sweep", folder, kill="executor", when="tiles/step-00003/[0-9]*.npy")
    assert outcome.failed_tasks  # the kill hit a task that had begun
    assert folder_bytes(folder / "tiles") == clean


def test_a_lost_driver_costs_a_panel(
    spark: SparkSession, cluster: Cluster, folder: Path, clean: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    cluster.run(__file__, "slow_sweep", folder, kill="driver", when="tiles/step-00003/[0-9]*.npy")
    assert json.loads((folder / "tiles" / module.MANIFEST).read_text())["step"] == 2
    with caplog.at_level(logging.INFO, logger=module.__name__):
        sweep(spark, folder)
    assert "goes on after panel 2 of 5" in caplog.text
    assert folder_bytes(folder / "tiles") == clean


def test_the_comparison_would_see_an_unseeded_number(
    spark: SparkSession, folder: Path, clean: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    def noisy_run(tiles: Tiles, step: int, run: Run) -> int:  # nested, so that it travels to the workers by value
        failing = sweep_run(tiles, step, run)
        tile = tiles.read(step + 1, run.row, run.row)
        tiles.save(step + 1, f"{run.row}-{run.row}", tile + 1e-9 * np.random.default_rng().random(tile.shape))
        return failing

    monkeypatch.setattr(module, "sweep_run", noisy_run)
    sweep(spark, folder)
    found = folder_bytes(folder / "tiles")
    assert found.keys() == clean.keys()
    assert found != clean
