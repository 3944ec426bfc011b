"""The neighbourhood solver, from the Gram's Parquet folder to the files of B.

target 600 s: n = 30 k, or 100 k with --full, which is to be done in 10 minutes and 8 GB (private memory of the whole
process tree; the files of A are mapped beside it). own driver: exact EASE on n = 12 k, and on the five real markets
where they are (M3REC_XMARKET); extra has what the approximation costs: support_overlap (Jaccard of B-Glob's entries),
and NDCG@10 of both with one pair of every user held out, ranked among all items of his market but those he has. sansa:
n = 3 k (12 k with --full: its factor is dense, minutes), from the same Gram, as many entries in B; only where installed
(peers/sansa_ease.py).
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from scipy import sparse

from m3rec_spark.data.synthetic import generate_arrays
from m3rec_spark.similarity import ease
from m3rec_spark.similarity.b_glob import filter_rows
from m3rec_spark.similarity.neighbourhood import read_weights, solve_neighbourhoods, support_overlap
from m3rec_spark.similarity.symmetric import symmetric_gram

LAMBDA, EPSILON, TARGET_S = 30.0, 0.01, 600.0
XMARKET = Path(os.environ.get("M3REC_XMARKET", Path(__file__).parents[2] / "shared" / "data" / "xmarket"))
RANKED = 2000  # users of a market
QUICK = {"markets": 3, "own": 5_000, "shared": 5_000, "users": 50_000, "neighbours": 200, "exact_own": 1_000,
         "sansa_own": 500}  # fmt: skip
FULL = QUICK | {"markets": 10, "own": 8_000, "shared": 20_000, "exact_own": 2_000, "sansa_own": 2_000}


@dataclass(frozen=True)
class Market:
    """X (users, n) of 0/1, and what was held out of it: the pairs (users[k], positives[k])."""

    X: sparse.csr_matrix
    users: np.ndarray
    positives: np.ndarray


def main() -> None:
    harness.BENCH.mkdir(parents=True, exist_ok=True)
    spark = harness.local_spark()
    with tempfile.TemporaryDirectory(dir=harness.BENCH) as folder:
        if "--laws" in sys.argv:
            laws(spark, Path(folder))
            return
        sizes = harness.arguments(__doc__, QUICK, FULL)
        against_exact(spark, "generated", four_markets(sizes.exact_own), Path(folder), sizes.neighbours)  # and warms up
        against_sansa(spark, four_markets(sizes.sansa_own), Path(folder), sizes.neighbours)
        if sizes.full and XMARKET.is_dir():
            against_exact(spark, "xmarket", five_markets(), Path(folder), sizes.neighbours)
        large = generated(sizes.markets, sizes.users, sizes.own, sizes.shared, groups=500)
        against_target(spark, large, Path(folder), sizes.neighbours)


def against_target(spark: Any, shop: list[Market], folder: Path, neighbours: int) -> None:
    cells, n = write_gram(shop, folder / "gram"), shop[0].X.shape[1]
    gflops = harness.gemm_gflops()
    with harness.MemoryWatch() as watch:
        start = time.perf_counter()
        report = solve(spark, folder, n, neighbours)
        seconds = time.perf_counter() - start
    extra = {
        "pairs": sum(market.X.nnz for market in shop),
        "gram_cells": cells,
        "tree_mb": round(watch.peak / 1e6, 1),
        "file_mb": round(sum(file.stat().st_size for file in folder.glob("[sc]*/*.npy")) / 1e6, 1),
        "entries": report.entries,
        "fewer": report.fewer,
        "none": report.none,
    }
    row = harness.Row(
        "neighbourhood", "target 600 s", f"n={n} m={neighbours}", round(seconds, 4), TARGET_S,
        round(TARGET_S / seconds, 3), round(watch.peak_mb, 1), 8000.0, 1, 0, round(gflops, 1), extra,
    )  # fmt: skip
    harness.record(row)


def against_exact(spark: Any, name: str, shop: list[Market], folder: Path, neighbours: int) -> None:
    write_gram(shop, folder / "gram")
    A, n = total(shop), shop[0].X.shape[1]
    quality: dict[str, Any] = {}

    def ours() -> None:
        solve(spark, folder, n, neighbours)

    def theirs() -> None:
        exact = ease.solve(A.toarray(order="F"), LAMBDA)
        if not quality:  # in the warm-up, which is not timed
            approximate = read_weights(folder / "columns")
            kept = approximate.multiply(approximate >= EPSILON)
            quality["support_overlap"] = round(support_overlap(filter_rows(exact, EPSILON), kept), 4)
            quality["ndcg_10_exact"], quality["ndcg_10"] = ndcg_10(shop, exact), ndcg_10(shop, approximate)

    size = f"{name} n={n} m={neighbours}"
    harness.compare("neighbourhood", "own driver, exact", size, ours, theirs, budget_s=15, extra=lambda *_: quality)


def against_sansa(spark: Any, shop: list[Market], folder: Path, neighbours: int) -> None:
    if not (harness.PEER_PYTHON.parents[1] / "sansa").is_dir():
        print("sansa is absent: see benchmarks/peers/sansa_ease.py", flush=True)
        return
    n = shop[0].X.shape[1]
    write_gram(shop, folder / "gram")
    sparse.save_npz(folder / "gram.npz", total(shop).astype(np.float32))

    def ours() -> None:
        solve(spark, folder, n, neighbours)

    def quality(*_: object) -> dict[str, Any]:
        factors = [sparse.load_npz(folder / f"sansa-{number}.npz") for number in (0, 1)]
        return {
            "ndcg_10_sansa": ndcg_10(shop, (factors[0] @ factors[1]).toarray()),
            "ndcg_10": ndcg_10(shop, read_weights(folder / "columns")),
        }

    given = {"folder": str(folder), "lambda_f": LAMBDA, "density": neighbours / n}
    with harness.peer_process("sansa_ease", **given) as theirs:
        size = f"generated n={n} m={neighbours}"
        harness.compare("neighbourhood", "sansa 1.1 cholmod", size, ours, theirs, budget_s=15, extra=quality)


def laws(spark: Any, folder: Path) -> None:
    """Time in n: more markets of one size. Time in m: between m (rows read) and m^3 (factors)."""
    points = []
    for markets in (1, 2, 4, 8):
        shop = generated(markets, 40_000, 10_000, 0, groups=200)
        write_gram(shop, folder / "gram")
        if not points:
            solve(spark, folder, 10_000, 200)  # warm
        points.append((10_000 * markets, timed(spark, folder, 10_000 * markets, 200)))
    harness.law("neighbourhood", "items", "items n", points)
    write_gram(generated(2, 40_000, 10_000, 0, groups=200), folder / "gram")
    points = [(m, timed(spark, folder, 20_000, m)) for m in (50, 100, 200, 400, 800)]
    harness.law("neighbourhood", "neighbours", "neighbours m", points)


def timed(spark: Any, folder: Path, n: int, neighbours: int) -> float:
    start = time.perf_counter()
    solve(spark, folder, n, neighbours)
    return time.perf_counter() - start


def solve(spark: Any, folder: Path, n: int, neighbours: int) -> Any:
    """From folder/gram to folder/columns."""
    for name in ("symmetric", "columns"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir()
    symmetric_gram(folder / "gram", folder / "symmetric", n, np.ones(len(list((folder / "gram").glob("market-*")))))
    return solve_neighbourhoods(spark, folder / "symmetric", folder / "columns", LAMBDA, neighbours)


def four_markets(own: int) -> list[Market]:
    """Each with `own` items of its own and 2 own shared ones: n = 6 own."""
    return generated(4, 4 * own, own, 2 * own, groups=80)


def generated(markets: int, users: int, own: int, shared: int, groups: int) -> list[Market]:
    """20 pairs a user, one of them held out."""
    arrays = generate_arrays(markets, users, own, shared, history=20.0, groups=groups, seed=0)
    rng = np.random.default_rng(0)
    shop, items = [], arrays.items
    for m in range(markets):
        ends = arrays.indptr[arrays.user_offsets[m] : arrays.user_offsets[m + 1] + 1]
        lengths = np.diff(ends)
        held = ends[:-1] + (rng.random(users) * lengths).astype(np.int64)
        kept = np.ones(ends[-1] - ends[0], np.float32)
        kept[held - ends[0]] = 0
        X = sparse.csr_matrix((kept, items[ends[0] : ends[-1]], ends - ends[0]), shape=(users, arrays.n_items))
        X.eliminate_zeros()
        chosen = rng.permutation(users)[:RANKED]
        shop.append(Market(X, chosen, items[held[chosen]]))
    return shop


def five_markets() -> list[Market]:
    """The real ones, with the public files' own held-out pairs."""
    read = {"sep": "\t", "dtype": str, "keep_default_na": False, "usecols": ["userId", "itemId"]}
    tables = [
        [
            pd.read_csv(XMARKET / market / f"{part}.tsv", **read).drop_duplicates()
            for part in ("train_5core", "valid_qrel")
        ]
        for market in ("s1", "s2", "s3", "t1", "t2")
    ]
    items = pd.Index(sorted(set().union(*(part["itemId"] for pair in tables for part in pair))))
    shop = []
    for train, held in tables:
        users = pd.Index(sorted(set(train["userId"])))
        at = users.get_indexer(train["userId"]), items.get_indexer(train["itemId"])
        X = sparse.csr_matrix((np.ones(len(train), np.float32), at), shape=(len(users), len(items)))
        held = held[held["userId"].isin(users)]
        shop.append(Market(X, users.get_indexer(held["userId"]), items.get_indexer(held["itemId"])))
    return shop


def write_gram(shop: list[Market], folder: Path, step: int = 4000) -> int:
    """The table GRAM, a folder a market; gives its rows."""
    shutil.rmtree(folder, ignore_errors=True)
    rows = 0
    for number, market in enumerate(shop):
        (folder / f"market-{number:03d}").mkdir(parents=True)
        X, by_item = market.X.astype(np.int32), market.X.T.tocsr().astype(np.int32)
        for first in range(0, X.shape[1], step):
            half = sparse.triu(by_item[first : first + step] @ X, k=first, format="csr")
            half.sort_indices()
            cells = half.tocoo()
            columns = [np.full(half.nnz, number, np.int32), cells.row + np.int32(first), cells.col, cells.data]
            table = pa.table([column.astype(np.int32) for column in columns], ["market", "item_a", "item_b", "count"])
            pq.write_table(table, folder / f"market-{number:03d}" / f"{first:09d}.parquet")
            rows += half.nnz
    return rows


def total(shop: list[Market]) -> sparse.csr_matrix:
    return sum(market.X.T @ market.X for market in shop).tocsr().astype(np.float64)


def ndcg_10(shop: list[Market], B: Any) -> list[float]:
    """In percent, market by market; ties at their expected rank."""
    found = []
    for market in shop:
        sold = np.bincount(market.X.indices, minlength=market.X.shape[1]) > 0
        sold[market.positives] = True
        items = np.flatnonzero(sold)
        block = B[items][:, items]
        histories = market.X[market.users][:, items]
        scores = histories @ (block.toarray() if sparse.issparse(block) else block)
        scores[histories.nonzero()] = -np.inf
        held = scores[np.arange(len(scores)), np.searchsorted(items, market.positives)][:, None]
        rank = 1 + (scores > held).sum(axis=1) + ((scores == held).sum(axis=1) - 1) / 2
        found.append(round(100 * float(np.where(rank <= 10, 1 / np.log2(1 + rank), 0).mean()), 2))
    return found


if __name__ == "__main__":
    main()
