"""EASE by the sweep on Spark, against LAPACK on the driver and against SPIN, Strassen's inverse on MLlib's BlockMatrix.

driver: both sides from the Gram's Parquet folder to the inverse, ours in tiles on disk; two threads each (two tasks of
one thread). The peer is dpotrf and dpotri in place, which is what EASE needs and three times less work than
numpy.linalg.inv. spin: ours from the Parquet folder again, loading included; the peer from a BlockMatrix in memory, its
better block size of two (with --full; else quarters).
--full: a catalogue of 30,000 items, with the largest process (target: 4 GB). --laws: time over items and over the
side of a tile, shuffled bytes.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import harness
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import spin
from bench_ease import gram_cells
from scipy.linalg import lapack

from m3rec_spark.data.synthetic import generate_arrays
from m3rec_spark.similarity.gram import dense_gram
from m3rec_spark.similarity.sweep import SweptWeights, sweep

LAMBDA = 30.0
TARGET_MB = 4000.0  # of any process, at full size
QUICK = {"items": 6_000, "spin_items": 4_000, "large_items": 0, "tile": 2_048}
FULL = {"items": 12_000, "spin_items": 4_000, "large_items": 30_000, "tile": 2_048}
LAW_ITEMS = (3_000, 6_000, 9_000, 12_000)
LAW_TILES = (500, 1_000, 2_000, 4_000)  # of 8,000 items
MKL = harness.PEER_PYTHON.parents[1] / "lib" / "libmkl_rt.so.3"


def main() -> None:
    harness.BENCH.mkdir(parents=True, exist_ok=True)
    options = {
        "spark.driver.memory": "8g",
        "spark.ui.enabled": "true",
        "spark.driver.extraJavaOptions": spin.java_options(MKL),
    }
    spark = harness.local_spark(**options)
    with tempfile.TemporaryDirectory(dir=harness.BENCH) as folder:
        if "--laws" in sys.argv:
            laws(spark, Path(folder))
            return
        sizes = harness.arguments(__doc__, QUICK, FULL)
        against_lapack(spark, Work(spark, Path(folder) / "driver", sizes.items, sizes.tile))
        if sizes.large_items:
            at_full_size(spark, Work(spark, Path(folder) / "large", sizes.large_items, sizes.tile))
        parts = (4, 8) if sizes.full else (4,)
        against_spin(spark, Work(spark, Path(folder) / "spin", sizes.spin_items, sizes.tile), parts)


class Work:
    """The Gram of a generated shop as a folder of Parquet, and the sweep of it."""

    def __init__(self, spark: Any, folder: Path, n: int, tile: int) -> None:
        self.spark, self.folder, self.n, self.tile = spark, folder, n, tile
        arrays = generate_arrays(1, 20_000, n, 0, history=20.0, groups=60, seed=0)
        (folder / "gram").mkdir(parents=True)
        for number, batch in enumerate(gram_cells(arrays)):
            file = folder / "gram" / f"part-{number}.parquet"
            pq.write_table(pa.Table.from_batches([batch]), file, row_group_size=1 << 18)

    def dense(self) -> np.ndarray:
        """A + lambda I, its lower half."""
        gram = dense_gram(ds.dataset(self.folder / "gram", format="parquet").to_batches(), self.n, np.ones(1))
        gram[np.diag_indices(self.n)] += LAMBDA
        return gram

    def sweep(self, tile: int | None = None) -> SweptWeights:
        shutil.rmtree(self.folder / "tiles", ignore_errors=True)
        tile = tile or self.tile
        place = self.folder / "tiles"
        return sweep(
            self.spark, self.folder / "gram", place, self.n, LAMBDA, np.ones(1), tile, key="k", cores=harness.THREADS
        )

    def seconds(self, tile: int | None = None) -> float:
        start = time.perf_counter()
        self.sweep(tile)
        return time.perf_counter() - start


def against_lapack(spark: Any, work: Work) -> None:
    def ours() -> np.ndarray:
        return corner(work.sweep())

    def theirs() -> np.ndarray:
        factor, _ = lapack.dpotrf(work.dense(), lower=1, clean=0, overwrite_a=1)
        inverse, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)
        return np.tril(inverse[:100, :100])

    before = shuffled_bytes(spark)
    size = f"n={work.n} tile={work.tile}"
    harness.compare(
        "sweep", "LAPACK potrf + potri", size, ours, theirs, same, budget_s=30,
        extra=lambda *_: {"shuffled_bytes": shuffled_bytes(spark) - before},
    )  # fmt: skip


def against_spin(spark: Any, work: Work, tried: tuple[int, ...]) -> None:
    lower = work.dense()
    A = np.tril(lower) + np.tril(lower, -1).T
    matrices = {parts: spin.block_matrix(spark, A, -(-work.n // parts)) for parts in tried}
    seconds = {}
    for parts, matrix in matrices.items():
        start = time.perf_counter()
        spin.inverse(matrix)
        seconds[parts] = round(time.perf_counter() - start, 2)
    best = min(seconds, key=lambda parts: seconds[parts])

    def theirs() -> np.ndarray:
        swept = spin.inverse(matrices[best])
        return np.tril(spin.to_array(spark, spin.part(swept, 1, 0, 0))[:100, :100])

    extra = {
        "block": -(-work.n // best),
        "first_seconds_by_parts": seconds,
        "java_blas": spin.java_blas(spark),
    }
    size = f"n={work.n} tile={work.tile}"
    harness.compare(
        "sweep", "SPIN on BlockMatrix", size, lambda: corner(work.sweep()), theirs, same, budget_s=30,
        extra=lambda *_: extra,
    )  # fmt: skip
    spark.catalog.clearCache()
    for rdd in spark.sparkContext._jsc.getPersistentRDDs().values():
        rdd.unpersist()


def at_full_size(spark: Any, work: Work) -> None:
    before, gflops = shuffled_bytes(spark), harness.gemm_gflops()
    with LargestProcess() as largest, harness.MemoryWatch() as watch:
        seconds = work.seconds()
    extra = {
        "largest_process_mb": largest.peak_mb,
        "largest_process": largest.name,
        "shuffled_bytes": shuffled_bytes(spark) - before,
    }
    row = harness.Row(
        "sweep", "target 4 GB a process", f"n={work.n} tile={work.tile}", round(seconds, 2), 0.0, 0.0,
        round(watch.peak_mb, 1), TARGET_MB, 1, 0, round(gflops, 1), extra,
    )  # fmt: skip
    harness.record(row)


def laws(spark: Any, folder: Path) -> None:
    """Each point is the faster of two runs."""
    points = []
    for n in LAW_ITEMS:
        work = Work(spark, folder / str(n), n, QUICK["tile"])
        points.append((n, min(work.seconds() for _ in range(2))))
        shutil.rmtree(work.folder)
    harness.law("sweep", "items", "items", points)
    work = Work(spark, folder / "tiles", 8_000, QUICK["tile"])
    before = shuffled_bytes(spark)
    points = [(tile, min(work.seconds(tile) for _ in range(2))) for tile in LAW_TILES]
    harness.law("sweep", "side of a tile", "items on a side, of 8,000", points)
    print(f"sweep shuffled {shuffled_bytes(spark) - before} bytes")


class LargestProcess:
    """Samples what each process of the tree holds for itself, for the largest of them all."""

    def __enter__(self) -> LargestProcess:
        self.peak_mb, self.name = 0.0, ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.1):
            for process in [me, *me.children(recursive=True)]:
                try:
                    memory = process.memory_info()
                    taken = round((memory.rss - memory.shared) / 1e6, 1)
                    if taken > self.peak_mb:
                        self.peak_mb, self.name = taken, process.name()
                except psutil.Error:  # it ended meanwhile
                    continue

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def corner(swept: SweptWeights) -> np.ndarray:
    """The lower half of the first rows and columns of C."""
    tiles = swept.tiles
    return -np.tril(tiles.open(tiles.count, 0, 0)[:100, :100])


def same(ours: np.ndarray, theirs: np.ndarray) -> None:
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-8)


def shuffled_bytes(spark: Any) -> int:
    """Read and written in shuffles by all stages of the session so far, as Spark's own status has it."""
    url = f"{spark.sparkContext.uiWebUrl}/api/v1/applications/{spark.sparkContext.applicationId}/stages"
    with urllib.request.urlopen(url, timeout=30) as answer:
        stages = json.load(answer)
    return sum(stage["shuffleReadBytes"] + stage["shuffleWriteBytes"] for stage in stages)


if __name__ == "__main__":
    main()
