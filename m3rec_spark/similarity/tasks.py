"""Numbered pieces of work as Spark tasks, and what keeps a short one short.

Before every task Spark's Python worker calls importlib.invalidate_caches(). Python 3.11 then reads the directory of a
zip file anew for each package imported from it: for pyspark.zip that is 0.1 to 0.2 s a task, many times what is left.
"""

from __future__ import annotations

import os
import sys
import zipimport
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pyarrow as pa
from pyspark.sql import SparkSession
from threadpoolctl import threadpool_limits


def one_task_blas() -> Any:
    """A block in which BLAS has a thread for each of the task's cores, whatever OPENBLAS_NUM_THREADS says.

    Tasks run beside each other: with more threads they would only wait for one another.
    """
    cores = os.environ.get("OMP_NUM_THREADS", "1")  # Spark sets it to spark.task.cpus
    return threadpool_limits(int(cores.split(",")[0]))


def run_tasks(spark: SparkSession, tasks: int, work: Callable[[int], list[int]]) -> list[list[int]]:
    """Runs `work(0)` to `work(tasks - 1)` as Spark tasks; gives what they return, in this order."""

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for task in batch["id"].to_pylist():
                with one_task_blas():
                    result = work(task)
                columns = [pa.array([task], pa.int64()), pa.array([result], pa.list_(pa.int64()))]
                yield pa.RecordBatch.from_arrays(columns, ["task", "result"])
        forget_zip_importers()

    done = spark.range(0, tasks, numPartitions=tasks).mapInArrow(run, "task long, result array<long>").collect()
    return [row["result"] for row in sorted(done, key=lambda row: row["task"])]


def forget_zip_importers() -> None:
    """For the end of a task: the worker's next one has no zip directories to read again.

    Importers are only cached; an import that needs one makes it anew, from the directory that was read before.
    """
    for path, importer in list(sys.path_importer_cache.items()):
        if isinstance(importer, zipimport.zipimporter):
            del sys.path_importer_cache[path]
