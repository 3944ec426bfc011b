"""EASE on the driver, and by elimination of the markets.

driver: from the Gram in memory (sparse, as each side keeps it) to B. Peer: numpy.linalg.inv as RecBole and RecPack call
it, with the newest numpy (the fair one), and with the numpy 1.26 of the other peers on fewer items (it is slow here);
and LAPACK's dpotrf and dpotri in place, three times less work than numpy.linalg.inv.

markets: from the Gram's Parquet folder to B[items of m, items of m] of every market, in float32 files. Peer: LAPACK's
dpotrf and dpotri (MKL's, by torch) on all items at once, the load of the same folder included. Then the same with what
pretrain publishes: B within the markets and B-Glob, for which every block across markets has to be made.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import torch
from harness import BENCH, arguments, compare, law, local_spark, peer_process
from scipy import sparse
from scipy.linalg import lapack

from m3rec_spark.data.arrays import MarketArrays, save_arrays
from m3rec_spark.data.synthetic import generate_arrays
from m3rec_spark.paths import replacing
from m3rec_spark.similarity import ease, markets
from m3rec_spark.similarity.dense import mirror
from m3rec_spark.similarity.gram import dense_gram
from m3rec_spark.similarity.tasks import run_tasks
from m3rec_spark.similarity.weights import DenseWeights, MarketItems, Outputs, similarity_on_driver, similarity_on_spark

LAMBDA = 30.0
QUICK = {"items": 6_000, "old_items": 4_000, "markets": 4, "own": 1_500, "shared": 1_500, "users": 20_000}
FULL = QUICK | {"items": 12_000, "markets": 8, "own": 2_000, "shared": 2_000}


def main() -> None:
    with tempfile.TemporaryDirectory(dir=_bench_folder()) as folder:
        if "--laws" in sys.argv:
            laws(Path(folder))
            return
        sizes = arguments(__doc__, QUICK, FULL)
        bench_driver(Path(folder) / "new", sizes.items, sizes.users, numpy2=True)
        if sizes.full:
            bench_driver(Path(folder) / "old", sizes.old_items, sizes.users, numpy2=False)
        bench_markets(Path(folder) / "markets", sizes.markets, sizes.own, sizes.shared, sizes.users)


def bench_driver(folder: Path, n: int, users: int, numpy2: bool) -> None:
    arrays = generate_arrays(1, users, n, 0, history=20.0, groups=60, seed=0)
    batches = gram_cells(arrays)
    sample = np.sort(np.random.default_rng(0).permutation(n)[:50])
    folder.mkdir()
    for name, array in (("indptr", arrays.indptr), ("items", arrays.items), ("sample", sample)):
        np.save(folder / f"{name}.npy", array)

    def ours() -> list[list[float]]:
        weights = solve_densely(batches, n)
        return weights[np.ix_(sample, sample)].tolist()

    def check(mine: list, theirs: dict) -> None:
        np.testing.assert_allclose(mine, theirs["sample"], atol=1e-10)

    given = {"arrays": str(folder), "n_items": n, "lambda_f": LAMBDA, "numpy2": numpy2}
    with peer_process("numpy_inverse", **given) as theirs:
        version = "2.3" if numpy2 else "1.26"
        compare("driver", f"numpy.linalg.inv {version}", f"n={n}", ours, theirs, check, budget_s=35)
    if numpy2:

        def by_lapack() -> dict:
            return {"sample": solve_by_lapack(batches, n)[np.ix_(sample, sample)].tolist()}

        compare("driver", "LAPACK potrf + potri", f"n={n}", ours, by_lapack, check, budget_s=35)


def bench_markets(folder: Path, count: int, own: int, shared: int, users: int) -> None:
    spark, work = local_spark(), MarketsWork(folder, count, own, shared, users)
    n = work.arrays.n_items
    sample = np.sort(np.random.default_rng(0).permutation(shared + own)[:60])  # places in a market

    def ours() -> list[np.ndarray]:
        work.solve(spark)
        return [np.load(file, mmap_mode="r")[np.ix_(sample, sample)] for file in work.files()]

    def theirs() -> list[np.ndarray]:
        weights = solve_by_mkl(work.cells(), n, count)
        return [weights[np.ix_(items[sample], items[sample])].astype(np.float32) for items in work.items]

    def check(mine: list, peers: list) -> None:
        np.testing.assert_allclose(mine, peers, atol=1e-8)

    def ours_published() -> int:
        work.eliminate(spark)
        return similarity_on_spark(spark, work.weights, work.outputs()).count()

    def theirs_published() -> int:
        weights = DenseWeights(solve_by_mkl(work.cells(), n, count))
        return sum(batch.num_rows for batch in similarity_on_driver(weights, work.outputs()))

    def check_published(mine: int, peers: int) -> None:
        np.testing.assert_allclose(mine, peers, rtol=1e-4)  # an entry at epsilon may fall on either side

    size = f"n={n} {count}x{own}+{shared}"
    compare("markets", "LAPACK potrf + potri", size, ours, theirs, check, budget_s=25)
    compare(
        "markets", "LAPACK, both on to B-Glob", size, ours_published, theirs_published, check_published, budget_s=25
    )
    spark.stop()


class MarketsWork:
    """A Gram folder and the elimination on it."""

    def __init__(self, folder: Path, count: int, own: int, shared: int, users: int) -> None:
        self.folder = folder
        self.arrays = generate_arrays(count, users, own, shared, history=20.0, groups=20, seed=0)
        self.items = MarketItems(self.arrays.slot_items, self.arrays.slot_offsets)
        for name in ("arrays", "gram"):
            (folder / name).mkdir(parents=True)
        save_arrays(self.arrays, folder / "arrays")
        for number, batch in enumerate(gram_cells(self.arrays)):
            pq.write_table(pa.Table.from_batches([batch]), folder / "gram" / f"part-{number:05d}.parquet")

    def cells(self) -> Iterable[pa.RecordBatch]:
        return ds.dataset(self.folder / "gram", format="parquet").to_batches()

    def files(self) -> list[Path]:
        return [self.folder / "ease" / f"market-{m:05d}.npy" for m in range(self.arrays.n_markets)]

    def outputs(self) -> Outputs:
        """New folders for what is published of B."""
        for name in ("b", "proof"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        return Outputs(self.items, 0.01, self.folder / "b", np.arange(64), self.folder / "proof")

    def eliminate(self, spark: Any) -> None:
        """The factors."""
        shutil.rmtree(self.folder / "blocks", ignore_errors=True)
        (self.folder / "blocks").mkdir()
        self.weights = markets.eliminate(
            spark,
            self.folder / "gram",
            self.folder / "arrays",
            self.folder / "blocks",
            LAMBDA,
            np.ones(self.arrays.n_markets),
        )

    def solve(self, spark: Any) -> None:
        """The factors, then B within every market."""
        shutil.rmtree(self.folder / "ease", ignore_errors=True)
        (self.folder / "ease").mkdir()
        self.eliminate(spark)
        weights, all_items, files = self.weights, list(self.items), self.files()

        def write(market: int) -> list[int]:
            items = all_items[market]
            with replacing(files[market]) as temporary, open(temporary, "wb") as file:
                np.save(file, weights.block(items, items).astype(np.float32))
            return []

        run_tasks(spark, len(files), write)


def laws(folder: Path) -> None:
    """Time over the number of items, and over that of markets."""
    points = []
    for n in (3_000, 6_000, 12_000):
        batches = gram_cells(generate_arrays(1, 20_000, n, 0, history=20.0, groups=60, seed=0))
        points.append((n, _seconds(partial(solve_densely, batches, n))))
    law("driver", "items", "items", points)
    spark = local_spark()
    fixed_own, fixed_items = [], []
    for count in (2, 4, 8, 16):
        for points, own in ((fixed_own, 1_000), (fixed_items, 16_000 // count)):
            work = MarketsWork(folder / f"{count}-{own}", count, own, 1_000, 10_000)
            points.append((count, _seconds(partial(work.solve, spark))))
            shutil.rmtree(work.folder)
    spark.stop()
    law("markets", "markets of 1000 own items", "markets", fixed_own)
    law("markets", "markets of 16000 own items together", "markets", fixed_items)


def solve_densely(batches: Iterable[pa.RecordBatch], n: int, count: int = 1) -> np.ndarray:
    return ease.solve(dense_gram(batches, n, np.ones(count)), LAMBDA)


def solve_by_lapack(batches: Iterable[pa.RecordBatch], n: int) -> np.ndarray:
    """B by dpotrf and dpotri of the library that we use too."""
    factor, _ = lapack.dpotrf(_system(batches, n, 1), lower=1, clean=0, overwrite_a=1)
    return _weights(lapack.dpotri(factor, lower=1, overwrite_c=1)[0])


def solve_by_mkl(batches: Iterable[pa.RecordBatch], n: int, count: int) -> np.ndarray:
    """B by those of MKL: at 16,000 items and more OpenBLAS ends the process (docs/decisions/014)."""
    factor = torch.linalg.cholesky(torch.from_numpy(_system(batches, n, count)))
    return _weights(torch.cholesky_inverse(factor).numpy())


def _system(batches: Iterable[pa.RecordBatch], n: int, count: int) -> np.ndarray:
    gram = dense_gram(batches, n, np.ones(count))
    gram[np.diag_indices(n)] += LAMBDA
    return gram


def _weights(inverse: np.ndarray) -> np.ndarray:
    """B of eq. 4 in the memory of (A + lambda I)^-1, of which the lower half is read."""
    mirror(inverse)
    inverse /= -np.diagonal(inverse).copy()
    inverse[np.diag_indices(len(inverse))] = 0.0
    return inverse


def gram_cells(arrays: MarketArrays) -> list[pa.RecordBatch]:
    """The Gram of every market as the table GRAM: in order, and a batch a market."""
    batches = []
    for market in range(arrays.n_markets):
        X, items = arrays.history(market), arrays.slot_items[arrays.market_slots(market)]
        upper = sparse.triu((X.T @ X).tocsr(), format="csr")
        upper.sort_indices()
        a, b, count = (items[upper.tocoo().row], items[upper.indices], upper.data.astype(np.int32))
        columns = {"market": np.full(len(a), market, np.int32), "item_a": a, "item_b": b, "count": count}
        batches.append(pa.RecordBatch.from_pydict(columns))
    return batches


def _seconds(run: Callable[[], Any]) -> float:
    """Of the faster of two runs."""
    found = []
    for _ in range(2):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return min(found)


def _bench_folder() -> Path:
    BENCH.mkdir(parents=True, exist_ok=True)
    return BENCH


if __name__ == "__main__":
    main()
