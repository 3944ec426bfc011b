from __future__ import annotations

import importlib
import sys
import zipfile
import zipimport
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from m3rec_spark.similarity.tasks import forget_zip_importers, run_tasks


def importers() -> list[str]:
    return [path for path, finder in sys.path_importer_cache.items() if isinstance(finder, zipimport.zipimporter)]


def test_results_come_in_the_order_of_the_tasks(spark: SparkSession) -> None:
    assert run_tasks(spark, 5, lambda task: [task, task * task]) == [[k, k * k] for k in range(5)]
    assert run_tasks(spark, 1, lambda task: []) == [[]]
    assert run_tasks(spark, 0, lambda task: [task]) == []


def test_a_worker_forgets(spark: SparkSession) -> None:
    """Workers that are used again hold no zip directory, though pyspark.zip is on their path."""
    run_tasks(spark, 4, lambda task: [])

    def seen(task: int) -> list[int]:
        import sys
        import zipimport

        zipped = [f for f in sys.path_importer_cache.values() if isinstance(f, zipimport.zipimporter)]
        return [sum("pyspark.zip" in path for path in sys.path), len(zipped)]

    assert all(on_path > 0 and cached == 0 for on_path, cached in run_tasks(spark, 2, seen))


def test_modules_in_zips_are_still_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "some.zip", "w") as file:
        file.writestr("first_in_zip.py", "VALUE = 1")
        file.writestr("second_in_zip.py", "VALUE = 2")
    monkeypatch.syspath_prepend(str(tmp_path / "some.zip"))
    assert importlib.import_module("first_in_zip").VALUE == 1
    assert importers()
    forget_zip_importers()
    assert not importers()
    assert importlib.import_module("second_in_zip").VALUE == 2


def test_blas_of_a_task_has_the_cores_of_a_task(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not as many as the machine has, though BLAS came with more."""

    def threads(task: int) -> list[int]:
        import numpy as np
        from threadpoolctl import threadpool_info, threadpool_limits

        threadpool_limits(2)  # what OPENBLAS_NUM_THREADS=2 gives it
        np.dot(np.ones((2, 2)), np.ones((2, 2)))
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    def limited(task: int) -> list[int]:
        from threadpoolctl import threadpool_info

        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    run_tasks(spark, 4, threads)
    found = run_tasks(spark, 4, limited)
    assert all(found)
    assert {count for one in found for count in one} == {1}
