"""The Gram after the loss of an executor or of a Python worker in the middle of its tasks: the same bytes."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from faults import Cluster, Victim, folder_bytes
from pyspark.sql import SparkSession

from m3rec_spark.data.arrays import open_arrays, save_arrays
from m3rec_spark.data.synthetic import generate_arrays
from m3rec_spark.paths import replacing
from m3rec_spark.similarity.entries import save_entries, transpose
from m3rec_spark.similarity.gram import cap_histories, write_gram
from m3rec_spark.similarity.gram_rows import Task, cells_of

pytestmark = pytest.mark.slow


def gram(spark: SparkSession, folder: Path) -> dict[str, int]:
    """Two markets of 300 million pairs each, in four tasks: time enough to be hit."""
    arrays = generate_arrays(
        markets=2, users=30_000, own_items=500, shared_items=1500, history=100.0, groups=5, seed=3
    )  # fmt: skip
    save_arrays(arrays, folder)
    save_entries(transpose(arrays.indptr, arrays.slots, len(arrays.slot_items)), folder)
    out = folder / "gram"
    out.mkdir()
    report = write_gram(spark, folder, folder, out, 160_000_000)
    return {"tasks": report.tasks, "pairs": report.pairs}


def sampled(spark: SparkSession, folder: Path, seed: int | None) -> int:
    """Grams of histories cut short, where the task draws what stays: from a seed, or (None) without one."""
    out = folder / "gram"
    out.mkdir()
    save_arrays(
        generate_arrays(markets=4, users=2000, own_items=100, shared_items=300, history=40.0, groups=5, seed=3), folder
    )

    def count(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            for market in batch["id"].to_pylist():
                with replacing(out / f"part-{market}.npy") as temporary, open(temporary, "wb") as file:
                    time.sleep(1)  # time to be hit
                    arrays, _ = cap_histories(open_arrays(folder), 20, secrets.randbits(31) if seed is None else seed)
                    entries = transpose(arrays.indptr, arrays.slots, len(arrays.slot_items))
                    rows = Task(market, *arrays.slot_offsets[market : market + 2].tolist(), pairs=0)
                    for cells in cells_of(arrays, entries, rows):
                        np.save(file, np.stack(cells))
            yield batch

    return spark.range(0, 4, numPartitions=4).mapInArrow(count, "id long").count()


def seeded(spark: SparkSession, folder: Path) -> int:
    return sampled(spark, folder, 7)


def unseeded(spark: SparkSession, folder: Path) -> int:
    return sampled(spark, folder, None)


@pytest.fixture(scope="module")
def clean(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("clean")
    outcome = cluster.run(__file__, "gram", folder)
    assert outcome.failed_tasks == 0
    assert outcome.result["tasks"] == 4
    return folder_bytes(folder / "gram")


@pytest.mark.parametrize("victim", ["executor", "worker"])
def test_same_bytes_after_a_kill(cluster: Cluster, clean: dict[str, bytes], tmp_path: Path, victim: Victim) -> None:
    outcome = cluster.run(__file__, "gram", tmp_path, kill=victim, when="gram/.part-*")
    assert outcome.failed_tasks, "the kill hit no task: this shows nothing"
    assert folder_bytes(tmp_path / "gram") == clean


@pytest.mark.parametrize(("job", "same"), [("seeded", True), ("unseeded", False)])
def test_an_unseeded_generator_is_seen(cluster: Cluster, tmp_path: Path, job: str, same: bool) -> None:
    """Negative control: the comparison above can fail, and what makes it fail is the seed alone."""
    folders = tmp_path / "clean", tmp_path / "killed"
    for folder, victim in zip(folders, (None, "executor"), strict=True):
        folder.mkdir()
        outcome = cluster.run(__file__, job, folder, kill=victim, when="gram/.part-*")
        assert bool(outcome.failed_tasks) == (victim is not None)
    first, second = (folder_bytes(folder / "gram") for folder in folders)
    assert len(first) == len(second) == 4
    assert (first == second) == same
