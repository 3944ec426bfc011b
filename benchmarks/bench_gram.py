"""The Gram: one X'X a market as Parquet files, on Spark.

columnSimilarities: MLlib's IndexedRowMatrix.columnSimilarities() (exact: threshold 0), in the same session.
sql: the self-join of SARplus (recommenders), in the same session, its result written as Parquet like ours.
    Both sides of these two start from the Parquet tables of a workspace, with integer indices.
sparse_dot_mkl: gram_matrix_mkl of all users x items in one process. Both sides start from the histories in memory or
    mapped; ours transposes them, runs on Spark and writes its files, MKL's result stays in memory.

Peers give the sum over markets; a sum and a weighted sum of all counts and the number of cells must be ours.
MLlib and SQL take minutes: they are warmed up on a twentieth of the users, and timed once.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
from harness import (
    BENCH,
    PEER_PYTHON,
    Row,
    arguments,
    compare,
    gemm_gflops,
    law,
    local_spark,
    peer_process,
    record,
    rep,
)
from shops import publish, with_long_history

from m3rec_spark.config import Gram
from m3rec_spark.data.arrays import MarketArrays, save_arrays
from m3rec_spark.data.build_arrays import build_arrays
from m3rec_spark.data.synthetic import generate_arrays
from m3rec_spark.similarity.entries import save_entries, transpose
from m3rec_spark.similarity.gram import GramReport, write_gram
from m3rec_spark.tables import Workspace

QUICK = {"markets": 5, "own": 1000, "shared": 3000, "history": 80.0, "users": 300, "mkl_users": 40_000,
         "pairs_per_task": Gram().pairs_per_task, "peers": "mkl,sql,mllib"}  # fmt: skip
FULL = QUICK | {"users": 20_000, "peers": "mkl,sql"}  # MLlib does not end in minutes there
SQL = """
    SELECT A.item i1, B.item i2, COUNT(*) value
    FROM train A INNER JOIN train B ON A.user = B.user AND A.item <= B.item
    GROUP BY A.item, B.item
"""
Checksums = dict[str, int]


def main() -> None:
    BENCH.mkdir(parents=True, exist_ok=True)
    spark = local_spark()
    with tempfile.TemporaryDirectory(dir=BENCH) as folder:
        if "--laws" in sys.argv:
            laws(spark, Path(folder))
            return
        sizes = arguments(__doc__, QUICK, FULL)
        if "mkl" in sizes.peers:
            bench_mkl(spark, Path(folder) / "mkl", sizes)
        if "sql" in sizes.peers or "mllib" in sizes.peers:
            bench_spark_peers(spark, Path(folder) / "spark", sizes)


def bench_mkl(spark: Any, folder: Path, sizes: Any) -> None:
    arrays = shop(sizes, sizes.mkl_users)
    folder.mkdir()
    save_arrays(arrays, folder)
    np.save(folder / "items.npy", arrays.items)
    engine = "mkl" if list((PEER_PYTHON.parents[1] / "lib").glob("libmkl_rt.so*")) else "scipy"
    peer = {"mkl": "sparse_dot_mkl gram_matrix_mkl", "scipy": "scipy X.T @ X"}[engine]
    out = folder / "gram"
    with peer_process("mkl_gram", engine=engine, folder=str(folder), n_items=arrays.n_items) as theirs:
        compare(
            "gram", peer, label(arrays), lambda: from_arrays(spark, arrays, folder, out, sizes.pairs_per_task), theirs,
            check=lambda _, found: same(checksums(out), found),
            extra=lambda report, _: figures(report),
        )  # fmt: skip


def bench_spark_peers(spark: Any, folder: Path, sizes: Any) -> None:
    arrays, few = shop(sizes, sizes.users), shop(sizes, sizes.users // 20)
    big, small = (publish(one, folder / name) for one, name in ((arrays, "big"), (few, "small")))
    out = folder / "gram"

    def ours() -> GramReport:
        return from_arrays(spark, build_arrays(big), folder, out, sizes.pairs_per_task, save=True)

    ours()
    runs = [rep(ours) for _ in range(5)]
    expected = checksums(out)
    peers = {
        "sql": ("SQL self-join of SARplus", self_join, same_table),
        "mllib": ("MLlib columnSimilarities", column_similarities, same_cosines),
    }
    for peer, run, check in (peers[name] for name in peers if name in sizes.peers):
        run(spark, small, folder / "warm")
        once = rep(lambda: run(spark, big, folder / "peer"))  # noqa: B023
        check(spark, out, once.result, expected)
        seconds = statistics.median(one.seconds for one in runs)
        record(Row(
            "gram", peer, label(arrays), round(seconds, 4), round(once.seconds, 4), round(once.seconds / seconds, 3),
            round(max(one.peak_mb for one in runs), 1), round(once.peak_mb, 1), len(runs), 1, round(gemm_gflops(), 1),
            figures(runs[0].result),
        ))  # fmt: skip


def from_arrays(
    spark: Any, arrays: MarketArrays, folder: Path, out: Path, pairs_per_task: int, save: bool = False
) -> GramReport:
    """Ours. save: the histories are not in files yet."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    if save:
        save_arrays(arrays, folder)
    save_entries(transpose(arrays.indptr, arrays.slots, len(arrays.slot_items)), folder)
    return write_gram(spark, folder, folder, out, pairs_per_task)


def train_pairs(spark: Any, workspace: Workspace) -> Any:
    """(user, item) with a number for each user of each market."""
    table = workspace.read(spark, "interactions").filter("split = 'train'")
    return table.selectExpr("market * 10000000L + user AS user", "item")


def self_join(spark: Any, workspace: Workspace, out: Path) -> Path:
    train_pairs(spark, workspace).createOrReplaceTempView("train")
    spark.sql(SQL).write.mode("overwrite").parquet(str(out))
    return out


def column_similarities(spark: Any, workspace: Workspace, _: Path) -> tuple[int, float]:
    """Number and sum of the cosines above the diagonal: one pass over MLlib's result."""
    from pyspark.mllib.common import callMLlibFunc
    from pyspark.mllib.linalg import SparseVector
    from pyspark.mllib.linalg.distributed import IndexedRow, IndexedRowMatrix
    from pyspark.sql import functions as F

    n_items = workspace.read(spark, "items").count()
    users = train_pairs(spark, workspace).groupBy("user").agg(F.sort_array(F.collect_list("item")).alias("items"))
    vectors = users.rdd.map(lambda row: IndexedRow(row[0], SparseVector(n_items, row[1], [1.0] * len(row[1]))))
    found = IndexedRowMatrix(vectors.cache(), numCols=n_items).columnSimilarities()
    cells = callMLlibFunc("getMatrixEntries", found._java_matrix_wrapper._java_model)  # stays in the JVM
    number, total = cells.agg(F.count("*"), F.sum("value")).first()
    vectors.unpersist()
    return int(number), float(total)


def same_table(spark: Any, ours: Path, theirs: Path, expected: Checksums) -> None:
    names = "COUNT(*) cells", "SUM(value) pairs", "SUM(value * ((i1 * 31L + i2 * 17L) % 1009)) hash"
    same(expected, spark.read.parquet(str(theirs)).selectExpr(*names).first().asDict())


def same_cosines(spark: Any, ours: Path, theirs: tuple[int, float], expected: Checksums) -> None:
    a, b, counts = summed(ours)
    users = np.zeros(b.max() + 1)
    users[a[a == b]] = counts[a == b]
    cosines = counts / np.sqrt(users[a] * users[b])
    assert theirs[0] == (a != b).sum(), f"{(a != b).sum()} cells above the diagonal, MLlib has {theirs[0]}"
    np.testing.assert_allclose(theirs[1], cosines[a != b].sum(), rtol=1e-9)


def same(ours: Checksums, theirs: Checksums) -> None:
    assert ours == theirs, f"not the same Gram: {ours} here, {theirs} there"


def summed(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """item_a, item_b and count of the sum over markets."""
    table = ds.dataset(folder, format="parquet").to_table(columns=["item_a", "item_b", "count"])
    a, b, counts = (table[name].to_numpy().astype(np.int64) for name in table.column_names)
    keys = a << 32 | b
    order = np.argsort(keys, kind="stable")
    keys, first = np.unique(keys[order], return_index=True)
    return keys >> 32, keys & 0xFFFFFFFF, np.add.reduceat(counts[order], first)


def checksums(folder: Path) -> Checksums:
    a, b, counts = summed(folder)
    return {"cells": len(a), "pairs": int(counts.sum()), "hash": int((counts * ((a * 31 + b * 17) % 1009)).sum())}


def figures(report: GramReport) -> dict[str, Any]:
    return {"cells": report.cells, "pairs": report.pairs, "tasks": report.tasks, "written_mb": report.file_bytes / 1e6,
            "shuffled_mb": 0}  # fmt: skip


def shop(sizes: Any, users: int) -> MarketArrays:
    return generate_arrays(sizes.markets, users, sizes.own, sizes.shared, sizes.history, groups=40, seed=0)


def squares(arrays: MarketArrays) -> float:
    return float((np.diff(arrays.indptr) ** 2).sum())


def label(arrays: MarketArrays) -> str:
    return f"n={arrays.n_items} users={arrays.n_rows} sum_sq={squares(arrays):.2g}"


def laws(spark: Any, folder: Path) -> None:
    """Linear in the sum of squares; flat in users where that is fixed; a user with 10^4 items costs his share."""

    def market(users: int, history: float, items: int = 2000) -> MarketArrays:
        return generate_arrays(1, users, items, 0, history, groups=2, seed=0)

    def point(arrays: MarketArrays, x: Callable[[MarketArrays], float]) -> tuple[float, float]:
        return x(arrays), seconds(spark, arrays, folder)

    by_squares = [point(market(users, 100.0), squares) for users in (50_000, 100_000, 200_000, 400_000)]
    law("gram", "sum of squares", "sum of squared history lengths", by_squares)
    by_users = [point(market(k * 25_000, 160.0 / k**0.5), lambda one: one.n_rows) for k in (1, 2, 4, 8, 16)]
    law("gram", "users", "users, at a fixed sum of squares", by_users)
    base = market(60_000, 80.0, 10_000)
    skewed = [point(with_long_history(base, d), squares) for d in (0, 5_000, 10_000)]
    law("gram", "skew", "sum of squares, with one user of 0, 5,000, 10,000 items", skewed)


def seconds(spark: Any, arrays: MarketArrays, folder: Path) -> float:
    """The median of three runs after a warm one."""
    save_arrays(arrays, folder)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        from_arrays(spark, arrays, folder, folder / "gram", Gram().pairs_per_task)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


if __name__ == "__main__":
    main()
