"""Walks after the loss of an executor in the middle of their tasks: the same bytes, from both engines."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from faults import Cluster, folder_bytes
from pyspark.sql import SparkSession

from m3rec_spark.data.arrays import MarketArrays, save_arrays
from m3rec_spark.data.synthetic import generate_arrays
from m3rec_spark.similarity import walk_blocks, walks, walks_partitioned

pytestmark = pytest.mark.slow

SEED = 5


def shop(folder: Path) -> MarketArrays:
    for name in ("arrays", "graph", "scratch", "walks"):
        (folder / name).mkdir()
    arrays = generate_arrays(markets=4, users=500, own_items=200, shared_items=400, history=20, groups=5, seed=3)
    save_arrays(arrays, folder / "arrays")
    return arrays


def broadcast(spark: SparkSession, folder: Path) -> int:
    """1.2 million walks in 73 files."""
    arrays = shop(folder)
    walks.save_graph(walks.build_graph(arrays.indptr, arrays.items, arrays.n_items), folder / "graph")
    return walks.write_walks(spark, folder / "graph", folder / "walks", 1000, 40, SEED, partitions=8)


def partitioned(spark: SparkSession, folder: Path) -> int:
    """1.2 million walks of 8 items through 4 blocks, in up to 8 rounds of 12 tasks or more."""
    arrays = shop(folder)
    walk_blocks.build_blocks(spark, folder / "arrays", folder / "graph", arrays.user_offsets)
    places = folder / "graph", folder / "scratch", folder / "walks"
    return walks_partitioned.write_walks(spark, *places, 1000, 8, SEED, walkers_per_task=100_000)


def unseeded(spark: SparkSession, folder: Path) -> int:
    """The broadcast engine, if its tasks drew their random numbers from a generator of their own."""
    arrays, target = shop(folder), str(folder / "walks")
    graph = walks.build_graph(arrays.indptr, arrays.items, arrays.n_items)
    connected = np.flatnonzero(graph.degrees()).astype(np.int32)

    def write(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        generator = np.random.default_rng()
        for batch in batches:
            for number in batch["id"].to_pylist():
                numbers = np.full(len(connected), number)
                made = walks.walk(graph, connected, numbers, 200, int(generator.integers(2**63)))
                walks.write_parquet(walks.walk_batch(numbers, made), Path(target) / f"walks-{number:03d}.parquet")
            yield batch

    return spark.range(0, 150, numPartitions=8).mapInArrow(write, "id long").count()


def same(cluster: Cluster, job: Callable[[SparkSession, Path], int], folder: Path, when: str) -> bool:
    """Whether the job leaves the same files where an executor is killed when a file appears."""
    results, contents = [], []
    for name, victim in (("clean", None), ("killed", "executor")):
        (folder / name).mkdir()
        outcome = cluster.run(__file__, job.__name__, folder / name, kill=victim, when=when)
        assert bool(outcome.failed_tasks) == (victim is not None), "the kill hit no task: this shows nothing"
        results.append(outcome.result)
        contents.append(folder_bytes(folder / name / "walks"))
    assert results[0] == results[1] > 0
    assert contents[0].keys() == contents[1].keys()
    return contents[0] == contents[1]


def test_broadcast_after_a_lost_executor(cluster: Cluster, tmp_path: Path) -> None:
    assert same(cluster, broadcast, tmp_path, "walks/.walks-*")


def test_partitioned_after_a_lost_executor(cluster: Cluster, tmp_path: Path) -> None:
    """In the middle of the fourth round, which reads what tasks on the lost executor have written."""
    assert same(cluster, partitioned, tmp_path, "scratch/round-00003/.*.npy*")


def test_an_unseeded_generator_is_seen(cluster: Cluster, tmp_path: Path) -> None:
    """Negative control: the comparison above can fail."""
    assert not same(cluster, unseeded, tmp_path, "walks/.walks-*")
