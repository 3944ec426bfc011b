"""A plan on paper for a catalogue that no single machine holds: what runs where, bytes, hours, money.

    python benchmarks/plan.py --interactions 1e9 --items 1e6 --markets 50

Rates come from build/bench/results.json of this machine (`make bench` first), EASE from the package's own cost model
(solvers.py, fixed rates). Linear laws are carried on in a straight line: a plan, not a measurement.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from harness import RESULTS, THREADS

from m3rec_spark.config import Ease, SkipGram, Walks
from m3rec_spark.similarity import solvers


class Step(NamedTuple):
    stage: str
    where: str
    core_hours: float
    hours: float
    gigabytes: float
    what: str


def main() -> None:
    chosen = options()
    steps = [*gram_step(chosen), *ease_steps(chosen), *walk_step(chosen), *skipgram_step(chosen)]
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
    parser.add_argument("--task-gb", type=float, default=16.0)
    parser.add_argument("--core-hour-price", type=float, default=0.05)
    return parser.parse_args()


def measured(stage: str, peer: str) -> dict[str, Any]:
    """The row of a stage whose peer begins so, with the largest size."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    found = [row for row in rows if row["stage"] == stage and row["peer"].startswith(peer)]
    if not found:
        raise SystemExit(f"no row '{stage} {peer}' in {RESULTS}: run `make bench` first")
    return max(found, key=lambda row: row["ours_s"])


def gram_step(chosen: argparse.Namespace) -> Iterator[Step]:
    row = measured("gram", "sparse_dot_mkl")
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
    machine = solvers.Machine(chosen.cores, 16, int(chosen.driver_gb * 1e9), int(chosen.task_gb * 1e9))
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


def walk_step(chosen: argparse.Namespace) -> Iterator[Step]:
    row, settings = measured("walks", "pecanpy walking alone"), Walks()
    tokens = chosen.items * settings.per_item * settings.length
    seconds = tokens / (row["extra"]["steps"] / row["ours_s"] / THREADS)
    yield spread("walks", chosen, seconds, 4 * tokens / 1e9, f"{tokens:.2g} steps; the histories mapped in each worker")


def skipgram_step(chosen: argparse.Namespace) -> Iterator[Step]:
    row, settings = measured("skipgram", "gensim, full"), SkipGram()
    pairs = chosen.items * Walks().per_item * Walks().length * 2 * settings.window * settings.epochs
    hours = pairs / row["extra"]["pairs_per_s_ours"] / 3600
    memory = 12 * chosen.items * settings.dimension * 4 / 1e9
    yield Step("skip-gram", f"driver, {THREADS} cores or a GPU", hours * THREADS, hours, memory,
               f"{pairs:.2g} pairs; {memory:.0f} GB of memory")  # fmt: skip


def spread(stage: str, chosen: argparse.Namespace, seconds: float, gigabytes: float, what: str) -> Step:
    hours = seconds / 3600
    return Step(stage, f"{chosen.cores} tasks", hours, hours / chosen.cores, gigabytes, what)


if __name__ == "__main__":
    main()
