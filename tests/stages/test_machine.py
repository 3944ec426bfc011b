from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
from pyspark.sql import SparkSession

from m3rec_spark.stages import machine
from m3rec_spark.stages.machine import describe_machine, spark_bytes, task_slots


def test_a_local_session_shares_what_the_machine_may_take(spark: SparkSession, tmp_path: Path) -> None:
    found = describe_machine(spark, 2.0, tmp_path)
    assert found.cores == task_slots(spark)
    assert (found.driver_bytes, found.worker_bytes) == (2 * 10**9, 2 * 10**9)
    assert found.task_bytes == 2 * 10**9 // found.cores
    assert found.disk_bytes is not None
    assert found.disk_bytes > 0
    assert found.driver_cores >= 1


@pytest.mark.parametrize(
    ("settings", "worker", "task"),
    [
        ({"spark.executor.memory": "8g", "spark.executor.cores": "4"}, 8 * 2**30, 2 * 2**30),
        ({"spark.executor.memory": "8g", "spark.executor.pyspark.memory": "6g"}, 6 * 2**30, 6 * 2**30),
        ({"spark.executor.cores": "4", "spark.task.cpus": "2"}, 2**30, 2**29),
    ],
)
def test_a_cluster_s_tasks_share_an_executor(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: dict[str, str], worker: int, task: int
) -> None:
    """The settings of a session on YARN, without a YARN."""
    session = SimpleNamespace(conf={"spark.master": "yarn", **settings})
    monkeypatch.setattr(machine, "task_slots", lambda _: 40)
    found = describe_machine(session, 1.0, tmp_path)  # type: ignore[arg-type]
    assert (found.cores, found.worker_bytes, found.task_bytes) == (40, worker, task)


def test_sizes_as_spark_writes_them() -> None:
    assert [spark_bytes(text) for text in ("1", "2k", "3m", "4gb", "1T")] == [2**20, 2**11, 3 * 2**20, 2**32, 2**40]
