"""Ours against a named peer: in turn (A B A B ...), warm, median, both on THREADS threads, memory of the process tree.

A row of build/bench/results.json is {stage, peer, size, ours_s, peer_s, ratio, ours_peak_mb, peer_peak_mb} with
ratio = peer / ours (above 1: ours is faster), how many runs each side had, and the machine's GEMM rate beside them.
Peak memory is what the process tree took privately during a run, over what it held before: the most of all runs, the
warm-up included, as later ones may use again what other processes of the tree (JVM, Spark workers) kept.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from scipy.linalg import blas

THREADS = 2
ROOT = Path(__file__).parents[1]
BENCH = ROOT / "build" / "bench"
RESULTS = BENCH / "results.json"
PEERS = Path(__file__).parent / "peers"
PEER_PYTHON = Path(os.environ.get("M3REC_PEER_PYTHON", ROOT / "build" / "peers" / "bin" / "python"))
_SAMPLE_SECONDS = 0.03


@dataclass
class Rep:
    """One run. result: what a comparison of both sides needs, JSON-able."""

    seconds: float
    peak_mb: float
    result: Any = None


@dataclass
class Row:
    stage: str
    peer: str
    size: str
    ours_s: float
    peer_s: float
    ratio: float
    ours_peak_mb: float
    peer_peak_mb: float
    ours_runs: int
    peer_runs: int
    gemm_gflops: float
    extra: dict[str, Any] = field(default_factory=dict)


class MemoryWatch:
    """Samples the private memory (resident less shared pages) of this process and its children while it is entered."""

    def __enter__(self) -> MemoryWatch:
        give_back()
        self.start = self.peak = private_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._stop.wait(_SAMPLE_SECONDS):
            self.peak = max(self.peak, private_bytes())

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def peak_mb(self) -> float:
        return (self.peak - self.start) / 1e6


def give_back() -> None:
    """Memory that this process keeps for later goes back to the machine, so that the next run is seen to take it."""
    gc.collect()
    pa.default_memory_pool().release_unused()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # of glibc
        trim(0)


def private_bytes() -> int:
    me, total = psutil.Process(), 0
    for process in [me, *me.children(recursive=True)]:
        try:
            memory = process.memory_info()
            total += memory.rss - memory.shared
        except psutil.Error:  # it ended meanwhile
            continue
    return total


def rep(function: Callable[[], Any]) -> Rep:
    """Runs a plain function once; a function that measured itself (a peer process) gives its own Rep."""
    with MemoryWatch() as watch:
        start = time.perf_counter()
        result = function()
        seconds = time.perf_counter() - start
    return result if isinstance(result, Rep) else Rep(seconds, watch.peak_mb, result)


def compare(
    stage: str,
    peer: str,
    size: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    check: Callable[[Any, Any], None] | None = None,
    runs: int = 5,
    budget_s: float = 60.0,
    extra: Callable[[Any, Any], dict[str, Any]] | None = None,
) -> Row:
    """Runs both sides in turn after a warm-up of each; records and prints the row.

    Args:
        stage: as `gram`.
        peer: as `scipy`.
        size: as `n=12000 sum_sq=5e8`.
        ours: a run of ours.
        theirs: a run of the peer, on the same data, for the same result.
        check: is given both results of the warm-up; raises where they are not what they should be.
        runs: of each side. A side that has used up its budget is not run again; where the peer's warm-up alone did, it
            counts. Ours is always run warm: what a first run adds is Spark's start.
        budget_s: of each side, warm-up included; half of it without --full.
        extra: figures for the row from both results.
    """
    if "--full" not in sys.argv:
        budget_s /= 2
    gflops = gemm_gflops()
    warm = {"ours": rep(ours), "peer": rep(theirs)}
    if check is not None:
        check(warm["ours"].result, warm["peer"].result)
    used = {side: one.seconds for side, one in warm.items()}
    kept: dict[str, list[Rep]] = {"ours": [], "peer": [warm["peer"]] if used["peer"] > budget_s else []}
    for _ in range(runs):
        for side, function in (("ours", ours), ("peer", theirs)):
            if not kept[side] or used[side] < budget_s:
                kept[side].append(rep(function))
                used[side] += kept[side][-1].seconds
    ours_s, peer_s = (statistics.median(one.seconds for one in kept[side]) for side in ("ours", "peer"))
    ours_mb, peer_mb = (max(one.peak_mb for one in [warm[side], *kept[side]]) for side in ("ours", "peer"))
    row = Row(
        stage, peer, size, round(ours_s, 4), round(peer_s, 4), round(peer_s / ours_s, 3), round(ours_mb, 1),
        round(peer_mb, 1), len(kept["ours"]), len(kept["peer"]), round(gflops, 1),
        extra(warm["ours"].result, warm["peer"].result) if extra else {},
    )  # fmt: skip
    record(row)
    return row


def record(row: Row) -> None:
    """Prints the row and puts it into results.json, in the place of an earlier one of the same stage, peer and size."""
    print(f"{row.stage} {row.peer} {row.size} {row.ours_s} {row.peer_s} {row.ratio}", flush=True)
    rows = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    key = (row.stage, row.peer, row.size)
    rows = [old for old in rows if (old["stage"], old["peer"], old["size"]) != key] + [asdict(row)]
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1))


def law(stage: str, name: str, x_label: str, points: list[tuple[float, float]], y_label: str = "seconds") -> float:
    """Records a scaling law, (x, y) points, with the slope of log y over log x; docs/scaling.md is drawn from these."""
    x, y = np.log(np.array(points)).T
    slope = float(np.polyfit(x, y, 1)[0])
    extra = {"x_label": x_label, "y_label": y_label, "points": points, "slope": round(slope, 3)}
    record(Row(stage, "law", name, round(points[-1][1], 4), 0, 0, 0, 0, 1, 0, round(gemm_gflops(), 1), extra))
    print(f"{stage} law {name}: slope {slope:.2f} of {y_label} over {x_label}", flush=True)
    return slope


def gemm_gflops(n: int = 2000) -> float:
    """The machine's double precision GEMM rate now, to tell a busy machine from an idle one."""
    a = np.asfortranarray(np.random.default_rng(0).random((n, n)))
    blas.dgemm(1.0, a, a)
    start = time.perf_counter()
    blas.dgemm(1.0, a, a)
    return 2 * n**3 / (time.perf_counter() - start) / 1e9


@contextmanager
def peer_process(script: str, **arguments: Any) -> Iterator[Callable[[], Rep]]:
    """A peer in its own environment (benchmarks/requirements-peers.txt) as a function that runs it once.

    The script is benchmarks/peers/<script>.py; it prepares its data from `arguments` (JSON on its command line) and
    then serves runs (peers/serve.py), so that start, imports and compilation are not timed.
    """
    if not PEER_PYTHON.is_file():
        raise SystemExit(f"{PEER_PYTHON} is absent: run `make peers`, or set M3REC_PEER_PYTHON")
    environment = os.environ | {f"{name}_NUM_THREADS": str(THREADS) for name in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
    process = subprocess.Popen(
        [str(PEER_PYTHON), str(PEERS / f"{script}.py"), json.dumps(arguments)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None

    def answer() -> dict[str, Any]:
        line = process.stdout.readline()  # type: ignore[union-attr]
        if not line:
            raise SystemExit(f"the peer {script} ended with {process.wait()}; see its message above")
        tree: dict[str, Any] = json.loads(line)
        return tree

    def run() -> Rep:
        process.stdin.write("run\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
        return Rep(**answer())

    try:
        answer()  # ready
        yield run
    finally:
        process.stdin.close()
        process.wait(timeout=60)


def local_spark(**options: str) -> Any:
    """local[THREADS], one BLAS thread a task: as many threads as a peer has."""
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # else the first python3 of PATH
    builder = SparkSession.builder.master(f"local[{THREADS}]").appName("benchmark")
    settings = {
        "spark.driver.memory": "4g",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.sql.shuffle.partitions": "8",
        "spark.log.level": "ERROR",
        # whatever this process has for itself and the peers, tasks run beside each other
        **{f"spark.executorEnv.{name}_NUM_THREADS": "1" for name in ("OMP", "MKL", "OPENBLAS", "NUMBA")},
        **options,
    }
    return builder.config(map=settings).getOrCreate()


def arguments(description: str, quick: dict[str, Any], full: dict[str, Any]) -> argparse.Namespace:
    """The sizes of a benchmark: --full takes the large ones, and every one of them can be set by its name."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--full", action="store_true", help=f"the large sizes {full} instead of {quick}")
    for name, value in quick.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=None)
    parsed = parser.parse_args()
    for name, value in (full if parsed.full else quick).items():
        if getattr(parsed, name) is None:
            setattr(parsed, name, value)
    return parsed
