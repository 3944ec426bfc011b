"""What the solvers may count on: cores and memory of the driver and of a Spark task."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import joblib
import torch
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from m3rec_spark.similarity.capacity import SAFE_SHARE, free_bytes
from m3rec_spark.similarity.solvers import Machine

_UNITS = {"": 2**20, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}  # Spark reads a bare number as MiB


def describe_machine(spark: SparkSession, memory_gb: float | None, workspace: Path) -> Machine:
    """The session's machine or cluster.

    Args:
        spark: the session.
        memory_gb: what a solver may take on this machine (10^9 bytes); None: SAFE_SHARE of what is free.
        workspace: the folder whose disk takes the files.
    """
    allowance = int(SAFE_SHARE * free_bytes()) if memory_gb is None else int(memory_gb * 1e9)
    cores = task_slots(spark)
    master = spark.conf.get("spark.master", "") or ""
    executor_bytes = _executor_bytes(spark)
    on_this_machine = re.match(r"local(\[|$|-cluster)", master) is not None
    return Machine(
        cores=cores,
        driver_cores=joblib.cpu_count(only_physical_cores=True),  # of this process: its affinity, its container's quota
        driver_bytes=allowance,
        task_bytes=allowance // cores if on_this_machine else executor_bytes // max(1, _tasks_of_executor(spark)),
        worker_bytes=allowance if on_this_machine else executor_bytes,
        cuda_bytes=torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else None,
        disk_bytes=shutil.disk_usage(workspace).free,
    )


def task_slots(spark: SparkSession) -> int:
    """Tasks that run at once: what Spark splits a range into when nobody says how often."""
    return spark.range(0, 1 << 20).select(F.spark_partition_id()).distinct().count()


def _executor_bytes(spark: SparkSession) -> int:
    """What the Python workers of an executor may take: spark.executor.pyspark.memory, or else as much as the JVM."""
    text = spark.conf.get("spark.executor.pyspark.memory", None) or spark.conf.get("spark.executor.memory", "1g")
    return spark_bytes(text or "1g")


def _tasks_of_executor(spark: SparkSession) -> int:
    """Where spark.executor.cores is not set: one on YARN and Kubernetes; standalone gives all cores of a worker."""
    standalone = (spark.conf.get("spark.master", "") or "").startswith("spark://")
    unset = task_slots(spark) if standalone else 1  # at most so many
    cores = int(spark.conf.get("spark.executor.cores", None) or unset)
    return cores // int(spark.conf.get("spark.task.cpus", "1") or 1)


def spark_bytes(text: str) -> int:
    """A size as Spark writes it.

    >>> spark_bytes("4g"), spark_bytes("512m"), spark_bytes("1024")
    (4294967296, 536870912, 1073741824)
    """
    number, unit = re.fullmatch(r"(\d+)([kmgt]?)b?", text.strip().lower()).groups()  # type: ignore[union-attr]
    return int(number) * _UNITS[unit]
