"""Random walks: 10 of 40 items from every item, from X and by themselves.

pecanpy, from X: ours builds and saves the graph and writes the walks as Parquet on a warm Spark; the peer makes A, its
alias tables and the walks, without the compilation that it repeats for each graph (extra.peer_compile_s).
pecanpy, walking: the kernels alone on two threads, graph and tables made before. Ours lies in mapped files.
join per step: GraphFrames' design on the same Spark: walkers join the adjacency lists and pick a neighbour, by alias
tables here; its lists are made and cached before. The catalogue is smaller, as the peer's lists grow with A.
partitioned: our own second engine on the same walks, a market a block. ratio: what the exchanges cost.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
from harness import BENCH, THREADS, Rep, arguments, compare, law, local_spark, peer_process
from join_walks import adjacency_lists, walk_by_joins

from m3rec_spark.data.arrays import save_arrays
from m3rec_spark.data.synthetic import generate_arrays
from m3rec_spark.similarity import walk_blocks, walks, walks_partitioned

PER_ITEM, LENGTH, SEED = 10, 40, 1
QUICK = {"items": 15_000, "users": 25_000, "history": 60, "small_items": 9_000, "small_users": 4_000}
FULL = {"items": 20_000, "users": 60_000, "history": 80, "small_items": 12_000, "small_users": 25_000}
MARKETS = 5


def main() -> None:
    with tempfile.TemporaryDirectory(dir=_bench_folder()) as folder:
        if "--laws" in sys.argv:
            laws(Path(folder))
            return
        sizes = arguments(__doc__, QUICK, FULL)
        shop = Shop(Path(folder) / "large", sizes.items, sizes.users, sizes.history)
        bench_walking(shop)
        with _spark() as spark:
            bench_from_x(spark, shop)
            if sizes.full:
                bench_partitioned(spark, shop)
            bench_joins(spark, Shop(Path(folder) / "small", sizes.small_items, sizes.small_users, 9))


class Shop:
    """Five markets; a third of their items is sold in all of them."""

    def __init__(self, folder: Path, items: int, users: int, history: float) -> None:
        own = items * 2 // (3 * MARKETS)
        shared = items - MARKETS * own
        self.arrays = generate_arrays(MARKETS, users // MARKETS, own, shared, history, groups=40, seed=0)
        self.folder = folder
        self.size = f"n={items} pairs={self.arrays.indptr[-1]} walks={PER_ITEM}x{LENGTH}"
        for name in ("graph", "arrays"):
            (folder / name).mkdir(parents=True)
        save_arrays(self.arrays, folder / "arrays")
        np.savez(folder / "x.npz", indptr=self.arrays.indptr, items=self.arrays.items, n_items=self.arrays.n_items)

    def graph(self) -> walks.WalkGraph:
        """Built from the arrays in memory, and saved."""
        graph = walks.build_graph(self.arrays.indptr, self.arrays.items, self.arrays.n_items)
        walks.save_graph(graph, self.folder / "graph")
        return graph

    def empty(self, name: str) -> Path:
        place = self.folder / name
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        return place

    def peer(self, job: str) -> Any:
        return peer_process("pecanpy_walks", job=job, data=str(self.folder / "x.npz"), per_item=PER_ITEM, length=LENGTH)


def bench_walking(shop: Shop) -> None:
    shop.graph()
    graph = walks.open_graph(shop.folder / "graph")
    starts, numbers = walkers(graph)
    steps = len(starts) * (LENGTH - 1)

    def check(mine: np.ndarray, theirs: dict) -> None:
        assert len(mine) == theirs["walks"]

    with shop.peer("walking") as theirs, ThreadPoolExecutor(THREADS) as pool:
        ours = partial(walk_on_threads, pool, graph, starts, numbers, LENGTH)
        row = compare(
            "walks", "pecanpy walking alone", shop.size, ours, theirs, check, extra=lambda *_: {"steps": steps}
        )
    print(f"  steps/s of a thread: ours {steps / row.ours_s / THREADS:.3g}, peer {steps / row.peer_s / THREADS:.3g}")


def bench_from_x(spark: Any, shop: Shop) -> None:
    degrees = shop.graph().degrees()

    def ours() -> Path:
        shop.graph()
        target = shop.empty("walks")
        walks.write_walks(spark, shop.folder / "graph", target, PER_ITEM, LENGTH, SEED)
        return target

    def check(target: Path, theirs: dict) -> None:
        matrix = walks.walk_matrix(ds.dataset(target, format="parquet").to_table())
        assert len(matrix) == theirs["walks"]
        np.testing.assert_allclose(degrees[matrix[:, -1]].mean(), theirs["mean_degree"], rtol=0.02)

    def extra(_: Path, theirs: dict) -> dict[str, Any]:
        return {f"peer_{name}": theirs[name] for name in theirs if name.endswith("_s")} | {
            "entries_of_A": theirs["entries_of_A"]
        }

    with shop.peer("from_x") as peer:

        def theirs() -> Rep:
            run = peer()
            return Rep(run.seconds - run.result["compile_s"] - run.result["check_s"], run.peak_mb, run.result)

        compare("walks", "pecanpy from X", shop.size, ours, theirs, check, budget_s=40, extra=extra)


def bench_partitioned(spark: Any, shop: Shop) -> None:
    shop.graph()
    blocks = shop.empty("blocks")
    walk_blocks.build_blocks(spark, shop.folder / "arrays", blocks, shop.arrays.user_offsets)

    def ours() -> Path:
        target = shop.empty("walks")
        walks.write_walks(spark, shop.folder / "graph", target, PER_ITEM, LENGTH, SEED)
        return target

    def theirs() -> Path:
        target, scratch = shop.empty("partitioned"), shop.empty("scratch")
        walks_partitioned.write_walks(spark, blocks, scratch, target, PER_ITEM, LENGTH, SEED)
        return target

    def check(mine: Path, other: Path) -> None:
        tables = (walks.walk_matrix(ds.dataset(place, format="parquet").to_table()) for place in (mine, other))
        np.testing.assert_array_equal(*tables)

    compare("walks", f"own partitioned, {MARKETS} blocks", shop.size, ours, theirs, check, budget_s=30)


def bench_joins(spark: Any, shop: Shop) -> None:
    adjacency = adjacency_lists(spark, shop.arrays)
    spark.conf.set("spark.sql.autoBroadcastJoinThreshold", "300m")  # a bit faster for the peer than shuffling walkers

    def ours() -> int:
        shop.graph()
        return walks.write_walks(spark, shop.folder / "graph", shop.empty("walks"), PER_ITEM, LENGTH, SEED)

    def theirs() -> int:
        return walk_by_joins(adjacency, shop.empty("joins"), PER_ITEM, LENGTH).count()

    def check(mine: int, other: int) -> None:
        assert mine == other

    compare("walks", "a join per step", shop.size, ours, theirs, check, budget_s=40)
    adjacency.unpersist()


def laws(folder: Path) -> None:
    """Seconds over steps; nanoseconds of a step over pairs; the partitioned engine over its blocks."""
    shop = Shop(folder / "steps", 15_000, 25_000, 60)
    shop.graph()
    with ThreadPoolExecutor(THREADS) as pool:
        graph = walks.open_graph(shop.folder / "graph")
        starts, numbers = walkers(graph)
        lengths = (10, 20, 40, 80, 160)
        points = [
            (length - 1, _seconds(partial(walk_on_threads, pool, graph, starts, numbers, length))) for length in lengths
        ]
        law("walks", "steps", f"steps of each of {len(starts)} walks", points)
        points = []
        for users in (2_500, 25_000, 250_000, 1_000_000):
            arrays = generate_arrays(MARKETS, users // MARKETS, users // 50, users // 20, 30, 40, 0)
            graph = walks.build_graph(arrays.indptr, arrays.items, arrays.n_items)
            starts, numbers = (array[:400_000] for array in shuffled(*walkers(graph)))
            seconds = _seconds(partial(walk_on_threads, pool, graph, starts, numbers, 40))
            points.append((float(arrays.indptr[-1]), seconds * THREADS / (len(starts) * 39) * 1e9))
        law("walks", "pairs", "pairs of X", points, "ns a step of a thread")
    with _spark() as spark:
        points = []
        for n_blocks in (1, 5, 10, 20):
            blocks, users = shop.empty(f"blocks-{n_blocks}"), shop.arrays.n_rows
            walk_blocks.build_blocks(spark, shop.folder / "arrays", blocks, np.arange(n_blocks + 1) * users // n_blocks)
            points.append((n_blocks, _seconds(partial(partitioned, spark, shop, blocks))))
        law("walks", "partitioned", "blocks", points)


def partitioned(spark: Any, shop: Shop, blocks: Path) -> int:
    scratch, target = shop.empty("scratch"), shop.empty("walks")
    return walks_partitioned.write_walks(spark, blocks, scratch, target, PER_ITEM, LENGTH, SEED)


def walkers(graph: walks.WalkGraph) -> tuple[np.ndarray, np.ndarray]:
    """PER_ITEM walks from each item that has a neighbour."""
    starts = np.flatnonzero(graph.degrees()).astype(np.int32)
    return np.repeat(starts, PER_ITEM), np.tile(np.arange(PER_ITEM), len(starts))


def shuffled(*arrays: np.ndarray) -> Iterator[np.ndarray]:
    order = np.random.default_rng(0).permutation(len(arrays[0]))
    return (array[order] for array in arrays)


def walk_on_threads(
    pool: ThreadPoolExecutor, graph: walks.WalkGraph, starts: np.ndarray, numbers: np.ndarray, length: int
) -> np.ndarray:
    """The kernel releases the GIL: a thread takes 8,192 walks at a time."""
    ends = [*range(0, len(starts), 8_192), len(starts)]

    def some(first: int, last: int) -> np.ndarray:
        return walks.walk(graph, starts[first:last], numbers[first:last], length, SEED)

    return np.concatenate(list(pool.map(some, ends[:-1], ends[1:])))


def _seconds(function: Callable[[], Any]) -> float:
    """Median of three, after a first one."""
    taken = []
    for _ in range(4):
        start = time.perf_counter()
        function()
        taken.append(time.perf_counter() - start)
    return sorted(taken[1:])[1]


@contextmanager
def _spark() -> Iterator[Any]:
    spark = local_spark()
    yield spark
    spark.stop()


def _bench_folder() -> Path:
    BENCH.mkdir(parents=True, exist_ok=True)
    return BENCH


if __name__ == "__main__":
    main()
