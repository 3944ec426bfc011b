"""Which solver of EASE (paper, eq. 4): time and memory of each, reckoned before anything is allocated.

Flops, n items, o of them in several markets, s_m in market m alone, o_m = shared items that m sells:
  driver, cuda    n^3                                    one n x n array, in place
  markets         sum_m (s_m^3 + 2 s_m^2 o_m + s_m o_m^2 + 2 s_m o_m o) + o^3 + 2 o (sum_m s_m)^2
  sweep           n^3 (1 + t / n), tiles of t x t        8 n^3 / t bytes through the disk, n / t Spark jobs
  neighbourhood   n m^3 / 3, m neighbours                approximate: never chosen, only asked for
The rates are fixed numbers, not measured ones, so that the same machine always makes the same choice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.errors import CapacityError, UsageError
from m3rec_spark.similarity import ease, neighbourhood
from m3rec_spark.similarity.markets import market_cost
from m3rec_spark.similarity.sweep_tiles import BAND

CORE_FLOPS = 40e9  # float64 GEMM of a core, AVX2; LAPACK's inverse reaches INVERSE_SHARE of it
INVERSE_SHARE = 0.8
SMALL_SYSTEMS_SHARE = 0.1  # of the neighbourhoods' systems, with the gathering of their cells
CUDA_FLOPS = 5e12
DISK_BYTES = 1e9  # a second and core, page cache
JOB_SECONDS = 0.3
START_SECONDS = 3.0  # of a solver on Spark: workers, files
_BLOCK = 512  # rows of B published at once
_PUBLISHED = 4  # bytes of an entry of B within a market, the table ease


@dataclass(frozen=True)
class Catalogue:
    """What the cost depends on."""

    n_items: int
    shared: int
    """Items that users of several markets bought: o."""
    own: tuple[int, ...]
    """Items that only users of market m bought: s_m."""
    shared_sold: tuple[int, ...]
    """Shared items that market m sells: o_m."""
    users: tuple[int, ...]
    """From which a market may be solved; 0 where it may not, as the Gram leaves some of their items out."""


@dataclass(frozen=True)
class Machine:
    """What there is to compute with."""

    cores: int
    """Tasks that run at once."""
    driver_cores: int
    driver_bytes: int
    """What the driver may take."""
    task_bytes: int
    """What a task may take."""
    worker_bytes: int = 0
    """What all tasks of a worker may take together, in files that they map."""
    cuda_bytes: int | None = None
    """Free memory of the GPU; None: there is none."""
    disk_bytes: int | None = None
    """Free on the workspace's disk; None: not known."""


@dataclass(frozen=True)
class Estimate:
    """Cost of one solver. obstacle: why it cannot be used, or ''."""

    solver: str
    flops: float
    seconds: float
    driver_bytes: int
    task_bytes: int
    disk_bytes: int
    obstacle: str = ""


def catalogue(arrays: MarketArrays, whole_histories: bool = True) -> Catalogue:
    """The sizes of the markets' own and shared items. whole_histories: the Gram counts all of them."""
    bought = np.asarray(arrays.slot_counts) > 0
    in_markets = np.bincount(arrays.slot_items[bought], minlength=arrays.n_items)
    markets = [arrays.slot_items[s][bought[s]] for s in map(arrays.market_slots, range(arrays.n_markets))]
    return Catalogue(
        n_items=arrays.n_items,
        shared=int((in_markets > 1).sum()),
        own=tuple(int((in_markets[items] == 1).sum()) for items in markets),
        shared_sold=tuple(int((in_markets[items] > 1).sum()) for items in markets),
        users=tuple(int(count) if whole_histories else 0 for count in np.diff(arrays.user_offsets)),
    )


def estimate_all(
    goods: Catalogue, machine: Machine, tile: int, neighbours: int, gram_cells: int, itemsize: int = 8
) -> list[Estimate]:
    """The cost of every solver, with what stands in its way.

    Args:
        goods: the catalogue.
        machine: to run on.
        tile: t of the sweep.
        neighbours: m of the neighbourhood.
        gram_cells: non-zero cells in the upper halves of the markets' Grams; an upper bound before they are counted.
        itemsize: bytes of a number on the driver and on CUDA, 8 or 4.
    """
    found = [
        _driver(goods, machine, itemsize),
        _cuda(goods, machine, itemsize),
        _markets(goods, machine),
        _sweep(goods, machine, tile),
        _neighbourhood(goods, machine, neighbours, gram_cells),
    ]
    return [_on_disk(one, machine) for one in found]


def choose(estimates: Iterable[Estimate], wish: str) -> Estimate:
    """The solver wished for, or with `auto` the fastest exact one that fits.

    Raises:
        CapacityError: it does not fit, or none does; names the bytes of all and the ways out.
        UsageError: cuda is wished for where there is none.
    """
    known = {estimate.solver: estimate for estimate in estimates}
    if wish != "auto":
        if known[wish].obstacle.startswith("no GPU"):
            raise UsageError("ease.solver=cuda, but torch sees no GPU: set ease.solver=auto, or install a CUDA build")
        if known[wish].obstacle:
            raise CapacityError(
                f"EASE by ease.solver={wish} {known[wish].obstacle}: {_WAY_OUT[wish]}, {_WAYS_OUT}\n"
                f"{table(known.values())}"
            )
        return known[wish]
    exact = [estimate for estimate in known.values() if estimate.solver != "neighbourhood"]
    fitting = [estimate for estimate in exact if not estimate.obstacle]
    if not fitting:
        obstacles = "; ".join(f"{estimate.solver}: {estimate.obstacle}" for estimate in exact)
        raise CapacityError(
            f"no exact solver of EASE fits ({obstacles}): {_WAYS_OUT}, or set ease.solver=neighbourhood "
            f"(approximate)\n{table(known.values())}"
        )
    return min(fitting, key=lambda estimate: estimate.seconds)


_WAY_OUT = {
    "driver": "set ease.solver=auto, or ease.precision=float32 (half the memory)",
    "cuda": "set ease.solver=auto, or ease.precision=float32 (half the memory)",
    "markets": "set ease.solver=auto, or give tasks more memory (spark.executor.pyspark.memory, fewer at once)",
    "sweep": "give tasks more memory (spark.executor.pyspark.memory, fewer at once)",
    "neighbourhood": "lower ease.neighbours",
}
_WAYS_OUT = (
    "raise clean.min_item_users to drop rare items, take a larger machine or disk, raise ease.memory_gb if more is "
    "free than it seems"
)


def table(estimates: Iterable[Estimate], chosen: Estimate | None = None) -> str:
    """The plan as text, a line a solver. chosen: None before the choice."""
    lines = [f"{'solver':<14}{'flops':>9}{'about s':>9}{'driver GB':>11}{'task GB':>9}{'disk GB':>9}"]
    for one in estimates:
        sizes = "".join(
            f"{size / 1e9:>{width}.2f}"
            for size, width in ((one.driver_bytes, 11), (one.task_bytes, 9), (one.disk_bytes, 9))
        )
        note = "  <- chosen" if one == chosen else f"  {one.obstacle}" if one.obstacle else ""
        lines.append(f"{one.solver:<14}{one.flops:>9.1e}{one.seconds:>9.0f}{sizes}{note}")
    return "\n".join(lines)


def estimate_driver(n_items: int, machine: Machine) -> Estimate:
    """The cost of the solver `driver` in float64, published tables aside."""
    return _driver(Catalogue(n_items, 0, (), (), ()), machine, 8)


def _driver(goods: Catalogue, machine: Machine, itemsize: int) -> Estimate:
    n = goods.n_items
    needed = ease.bytes_needed(n, itemsize)
    rate = CORE_FLOPS * machine.driver_cores * INVERSE_SHARE * (8 / itemsize)
    return Estimate("driver", n**3, n**3 / rate, needed, 0, _published(goods), _lacks(machine, driver=needed))


def _cuda(goods: Catalogue, machine: Machine, itemsize: int) -> Estimate:
    n = goods.n_items
    needed = ease.bytes_needed(n, itemsize)  # on the GPU, and once more on the driver
    obstacle = "no GPU"
    if machine.cuda_bytes is not None:
        short = f"needs {needed:,} bytes of GPU memory, {machine.cuda_bytes:,} are free"
        obstacle = short if needed > machine.cuda_bytes else _lacks(machine, driver=needed)
    return Estimate("cuda", n**3, n**3 / (CUDA_FLOPS * 8 / itemsize) + 1, needed, 0, _published(goods), obstacle)


def _markets(goods: Catalogue, machine: Machine) -> Estimate:
    o, rows = goods.shared, 8 * 3 * _BLOCK * goods.n_items
    sizes = list(zip(goods.own, goods.shared_sold, goods.users, strict=True))
    costs = [market_cost(s, o_m, o, users, machine.task_bytes) for s, o_m, users in sizes]
    tasks, cross = [cost.flops for cost in costs], 2 * o * (sum(goods.own) ** 2 - sum(s**2 for s in goods.own))
    spread = max(max(tasks), sum(tasks) / machine.cores) + cross / machine.cores
    seconds = START_SECONDS + spread / CORE_FLOPS + o**3 / (CORE_FLOPS * machine.driver_cores * INVERSE_SHARE)
    driver, task = 8 * 2 * o**2, max(rows, *(cost.task_bytes for cost in costs))
    disk = 8 * sum(2 * s**2 + s * (o + o_m) + o_m**2 for s, o_m, _ in sizes) + 8 * o**2 + _published(goods)
    obstacle = _lacks(machine, driver=driver, task=task)
    return Estimate("markets", sum(tasks) + o**3 + cross, seconds, driver, task, disk, obstacle)


def _sweep(goods: Catalogue, machine: Machine, tile: int) -> Estimate:
    n = goods.n_items
    steps = -(-n // tile)
    tile = -(-n // steps)  # all of one size
    flops = n**3 * (1 + tile / n)
    disk, moved = 8 * n**2 + _published(goods), 8 * n**2 * steps  # two generations of lower tiles
    seconds = START_SECONDS + flops / (CORE_FLOPS * machine.cores) + moved / (DISK_BYTES * machine.cores)
    task = 8 * max((min(steps, BAND) + 3) * tile**2, 6 * tile**2, 3 * _BLOCK * n)
    seconds += steps * JOB_SECONDS
    return Estimate("sweep", flops, seconds, 0, task, disk, _lacks(machine, task=task))


def _neighbourhood(goods: Catalogue, machine: Machine, neighbours: int, gram_cells: int) -> Estimate:
    cost = neighbourhood.plan(goods.n_items, gram_cells, neighbours)
    seconds = START_SECONDS + cost.flops / (SMALL_SYSTEMS_SHARE * CORE_FLOPS * machine.cores)
    obstacle = _lacks(machine, driver=cost.driver_bytes, task=cost.task_bytes)
    return Estimate(
        "neighbourhood", cost.flops, seconds, cost.driver_bytes, cost.task_bytes, cost.file_bytes, obstacle
    )  # fmt: skip


def _published(goods: Catalogue) -> int:
    return _PUBLISHED * sum((own + sold) ** 2 for own, sold in zip(goods.own, goods.shared_sold, strict=True))


def _on_disk(one: Estimate, machine: Machine) -> Estimate:
    if machine.disk_bytes is None or one.disk_bytes <= machine.disk_bytes:
        return one
    short = f"needs {one.disk_bytes:,} bytes on the workspace's disk, where {machine.disk_bytes:,} are free"
    return replace(one, obstacle=f"{one.obstacle} and {short}" if one.obstacle else short)


def _lacks(machine: Machine, driver: int = 0, task: int = 0) -> str:
    found = []
    if driver > machine.driver_bytes:
        found.append(f"needs {driver:,} bytes on the driver, which may take {machine.driver_bytes:,}")
    if task > machine.task_bytes:
        found.append(f"needs {task:,} bytes in a task, which may take {machine.task_bytes:,}")
    return " and ".join(found)
