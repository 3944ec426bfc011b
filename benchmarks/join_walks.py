"""A peer of the walks: GraphFrames' design, walkers that join the adjacency lists at every step, with alias tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from scipy import sparse

from m3rec_spark.data.arrays import MarketArrays


def walk_by_joins(adjacency: DataFrame, scratch: Path, per_item: int, length: int, batch: int = 10) -> DataFrame:
    """GraphFrames' RandomWalkWithRestart without restarts: a join a step, Parquet after every `batch` of them."""
    spark = adjacency.sparkSession
    walkers = adjacency.select("node").crossJoin(spark.range(per_item).withColumnRenamed("id", "number"))
    walkers = walkers.select("node", F.col("node").alias("start"), "number", F.array("node").alias("items"))
    slot = (F.rand(1) * F.size("neighbours")).cast("int")
    kept = F.rand(2) < F.get("threshold", "slot")
    for step in range(1, length):
        joined = walkers.join(adjacency, "node").withColumn("slot", slot)
        place = F.when(kept, F.col("slot")).otherwise(F.get("alias", "slot"))
        moved = joined.select("start", "number", "items", F.get("neighbours", place).alias("next"))
        walkers = moved.select(
            F.col("next").alias("node"), "start", "number", F.concat("items", F.array("next")).alias("items")
        )
        if step % batch == 0 or step == length - 1:
            walkers.write.parquet(str(scratch / f"{step}"))
            walkers = spark.read.parquet(str(scratch / f"{step}"))
    return walkers


def adjacency_lists(spark: Any, arrays: MarketArrays) -> DataFrame:
    """(node, neighbours, threshold, alias) of A without its diagonal, cached by node."""
    X = sparse.csr_matrix((np.ones(len(arrays.items), np.float32), arrays.items, arrays.indptr))
    A = (X.T @ X).tolil()
    A.setdiag(0)
    A = A.tocsr()
    A.eliminate_zeros()
    rows = [(node, *alias_table(A, node)) for node in range(A.shape[0]) if A.indptr[node] < A.indptr[node + 1]]
    columns = [pa.array([row[k] for row in rows]) for k in range(4)]
    table = pa.table(columns, ["node", "neighbours", "threshold", "alias"])
    frame = spark.createDataFrame(table).repartition(8, "node").cache()
    frame.count()
    return frame


def alias_table(A: Any, node: int) -> tuple[list[int], list[float], list[int]]:
    """Walker's alias method: neighbours, and for each the share of its slot that it keeps and who has the rest."""
    neighbours, weights = (array[A.indptr[node] : A.indptr[node + 1]] for array in (A.indices, A.data))
    share = (weights * len(weights) / weights.sum()).astype(np.float64)
    alias = np.arange(len(share))
    poor, rich = list(np.flatnonzero(share < 1)), list(np.flatnonzero(share >= 1))
    while poor and rich:
        low, high = poor.pop(), rich[-1]
        alias[low] = high
        share[high] -= 1 - share[low]
        if share[high] < 1:
            poor.append(rich.pop())
    return neighbours.tolist(), share.tolist(), alias.tolist()
