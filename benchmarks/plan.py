"""A plan on paper for a catalogue that no single machine holds: what runs where, bytes, hours, money.

    python benchmarks/plan.py --interactions 1e9 --items 1e6 --markets 50

Rates come from build/bench/results.json of this machine (`make bench` first) and, of the certificate, from a short run
here; EASE from the package's own cost model (solvers.py, fixed rates). Linear laws are carried on in a straight line: a
plan, not a measurement.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from bench_skipgram import pairs_of_walk
from harness import RESULTS, THREADS

from m3rec_spark.config import Ease, SkipGram, Walks
from m3rec_spark.similarity import market_linear, solvers, walk_graph
from m3rec_spark.similarity.certificate import certificate, certificate_columns


class Step(NamedTuple):
    stage: str
    where: str
    core_hours: float
    hours: float
    gigabytes: float
    what: str


def main() -> None:
    chosen = options()
    steps = [
        *gram_step(chosen), *ease_steps(chosen), *certificate_step(chosen), *linear_step(chosen), *walk_step(chosen),
        *skipgram_step(chosen),
    ]  # fmt: skip
    print("| stage | runs on | core hours | hours | on disk, GB | what that is |\n|---|---|---|---|---|---|")
    for step in steps:
        figures = f"{step.core_hours:,.1f} | {step.hours:.2g} | {step.gigabytes:,.0f}"
        print(f"| {step.stage} | {step.where} | {figures} | {step.what} |")
    hours = sum(step.hours for step in steps)
    price = hours * chosen.cores * chosen.core_hour_price
    print(f"\n{hours:.1f} hours of {chosen.cores} cores: {price:,.0f} at {chosen.core_hour_price} a core hour")


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--interactions", type=float, default=1e9)
    parser.add_argument("--items", type=float, default=1e6)
    parser.add_argument("--markets", type=int, default=50)
    parser.add_argument("--shared", type=float, default=5e4, help="items sold in several markets")
    parser.add_argument("--sold", type=float, default=1.5e4, help="of these, in a market")
    parser.add_argument("--history", type=float, default=20.0, help="items of a user, in the mean")
    parser.add_argument("--dispersion", type=float, default=2.0, help="mean squared history over squared mean")
    parser.add_argument("--cores", type=int, default=256)
    parser.add_argument("--driver-gb", type=float, default=128.0)
    parser.add_argument("--driver-cores", type=int, default=16)
    parser.add_argument("--task-gb", type=float, default=16.0)
    parser.add_argument("--worker-gb", type=float, default=64.0, help="of the four tasks of a worker together")
    parser.add_argument("--core-hour-price", type=float, default=0.05)
    return parser.parse_args()


def measured(stage: str, *peers: str) -> dict[str, Any]:
    """The row of a stage whose peer begins so, with the largest size."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    found = [row for row in rows if row["stage"] == stage and row["peer"].startswith(peers)]
    if not found:
        raise SystemExit(f"no row '{stage} {peers[0]}' in {RESULTS}: run `make bench` first")
    return max(found, key=lambda row: row["ours_s"])


def gram_step(chosen: argparse.Namespace) -> Iterator[Step]:
    row = measured("gram", "sparse_dot_mkl", "scipy")
    pairs = chosen.interactions * (chosen.history * chosen.dispersion + 1) / 2
    seconds = pairs / (row["extra"]["pairs"] / row["ours_s"] / THREADS)
    size = pairs * row["extra"]["written_mb"] / row["extra"]["cells"] / 1e3  # if no two users had a pair in common
    yield spread("Gram", chosen, seconds, size, f"{pairs:.2g} item pairs, at most as many cells")


def ease_steps(chosen: argparse.Namespace) -> Iterator[Step]:
    own = int((chosen.items - chosen.shared) / chosen.markets)
    users = int(chosen.interactions / chosen.history / chosen.markets)
    goods = solvers.Catalogue(
        n_items=int(chosen.items), shared=int(chosen.shared), own=(own,) * chosen.markets,
        shared_sold=(int(chosen.sold),) * chosen.markets, users=(users,) * chosen.markets,
    )  # fmt: skip
    memory = (int(gigabytes * 1e9) for gigabytes in (chosen.driver_gb, chosen.task_gb, chosen.worker_gb))
    machine = solvers.Machine(chosen.cores, chosen.driver_cores, *memory)
    cells = int(chosen.interactions * (chosen.history * chosen.dispersion + 1) / 2)
    estimates = solvers.estimate_all(goods, machine, Ease().tile, Ease().neighbours, cells)
    best = solvers.choose(estimates, "auto")
    for one in estimates:
        what = f"{one.flops:.1e} flops; driver {one.driver_bytes / 1e9:,.0f} GB, task {one.task_bytes / 1e9:,.1f} GB"
        hours = one.seconds / 3600
        if one is best:
            yield Step(f"EASE `{one.solver}`", "tasks, driver", hours * chosen.cores, hours, one.disk_bytes / 1e9, what)
        elif one.solver != "cuda":
            why = "does not fit" if one.obstacle else "slower" if one.solver != "neighbourhood" else "approximate"
            yield Step(f"(EASE `{one.solver}`)", "-", 0.0, 0.0, one.disk_bytes / 1e9, f"{what}; {hours:,.2g} h; {why}")


def certificate_step(chosen: argparse.Namespace) -> Iterator[Step]:
    """One pass over the Gram on the driver, at the rate of as many items here."""
    n, cells = int(chosen.items), 2_000_000
    columns, rng = certificate_columns(n), np.random.default_rng(0)
    a, b = np.sort(rng.integers(0, n, (2, cells), np.int32), axis=0)
    batch = pa.RecordBatch.from_arrays(
        [pa.array(np.zeros(cells, np.int32)), pa.array(a), pa.array(b), pa.array(np.ones(cells, np.int32))],
        ["market", "item_a", "item_b", "count"],
    )
    some = pa.RecordBatch.from_arrays([column[:100] for column in batch.columns], batch.schema.names)
    zeros, any_residual = np.zeros((n, len(columns))), {"tolerance": np.inf, "error_limit": np.inf}
    seconds = []
    for sample in (some, some, batch):  # compiled; without cells; with them
        start = time.perf_counter()
        certificate(lambda sample=sample: [sample], zeros, columns, 1.0, np.ones(1), **any_residual)
        seconds.append(time.perf_counter() - start)
    pairs = chosen.interactions * (chosen.history * chosen.dispersion + 1) / 2
    hours = (seconds[2] - seconds[1]) / cells * pairs / 3600
    threads = min(chosen.driver_cores, len(columns) // 16)  # a thread has 16 columns
    what = f"{pairs:.2g} cells at most, {len(columns)} columns of B"
    yield Step("certificate", f"driver, {threads} threads", hours, hours / threads, 0, what)


def linear_step(chosen: argparse.Namespace) -> Iterator[Step]:
    """Its memory alone, for markets that listen to their own shoppers: what it takes of time follows the data."""
    pairs = chosen.interactions * (chosen.history * chosen.dispersion + 1) / 2 / chosen.markets
    items = (chosen.items - chosen.shared) / chosen.markets + chosen.sold
    memory = market_linear.CELL_BYTES * min(pairs, items * (items + 1) / 2) / 1e9
    what = f"not reckoned: hours; up to {memory:,.1f} GB in a task with linear.others=[0.0]"
    yield Step("(linear)", f"{chosen.markets} tasks", 0.0, 0.0, 0.0, what)


def walk_step(chosen: argparse.Namespace) -> Iterator[Step]:
    row, settings = measured("walks", "pecanpy walking alone"), Walks()
    users = int(chosen.interactions / chosen.history)
    graph = walk_graph.graph_bytes(int(chosen.interactions), int(chosen.items), users) / 1e9
    if graph > min(chosen.driver_gb, chosen.worker_gb):
        raise SystemExit(f"the engine broadcast needs {graph:.1f} GB in a worker and on the driver: raise --worker-gb")
    tokens = chosen.items * settings.per_item * settings.length
    seconds = tokens / (row["extra"]["steps"] / row["ours_s"] / THREADS)
    what = f"{tokens:.2g} steps; {graph:.1f} GB of histories mapped in each worker"
    yield spread("walks", chosen, seconds, 4 * tokens / 1e9, what)


def skipgram_step(chosen: argparse.Namespace) -> Iterator[Step]:
    row, settings = measured("skipgram", "gensim"), SkipGram()
    passes = chosen.items * Walks().per_item * settings.epochs  # of a walk
    hours = passes / (row["extra"]["pairs_per_s_ours"] / pairs_of_walk("shrinking" in row["peer"])) / 3600
    memory = 12 * chosen.items * settings.dimension * 4 / 1e9
    yield Step("skip-gram", f"driver, {THREADS} cores or a GPU", hours * THREADS, hours, memory,
               f"{passes * pairs_of_walk(False):.2g} pairs; {memory:.0f} GB of memory")  # fmt: skip


def spread(stage: str, chosen: argparse.Namespace, seconds: float, gigabytes: float, what: str) -> Step:
    hours = seconds / 3600
    return Step(stage, f"{chosen.cores} tasks", hours, hours / chosen.cores, gigabytes, what)


if __name__ == "__main__":
    main()
