"""All benchmarks one after another, then every ratio of this run beside its goal: make bench, make bench-full.

Each stage is a program of its own (its sizes: python benchmarks/bench_<stage>.py --help), so that none runs in the
memory or the warm caches of another. --only gram,walks runs some; --full takes the large sizes and the scaling laws.
Goals are ratios at the large sizes: at the quick ones fixed costs weigh more, and the markets are fewer.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harness import RESULTS, ROOT, THREADS

STAGES = ("gram", "ease", "sweep", "neighbourhood", "walks", "skipgram", "recommend", "serving")
GOALS = {
    ("gram", "sparse_dot_mkl"): 0.4, ("gram", "SQL"): 5, ("gram", "MLlib"): 5, ("driver", "numpy"): 2,
    ("markets", "LAPACK"): 5, ("sweep", "LAPACK"): 0.5, ("sweep", "SPIN"): 5, ("neighbourhood", "target"): 1,
    ("walks", "pecanpy walking"): 1, ("walks", "pecanpy from X"): 3, ("walks", "a join"): 30,
    ("skipgram", "gensim"): 1.5, ("skipgram", "itself without smoothing"): 0.67,
}  # fmt: skip
Rows = list[dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="large sizes and scaling laws")
    parser.add_argument("--only", default=",".join(STAGES), help="stages, separated by commas")
    chosen = parser.parse_args()
    environment = os.environ | {f"{name}_NUM_THREADS": str(THREADS) for name in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
    failed, start, before = [], time.perf_counter(), recorded()
    for stage in chosen.only.split(","):
        program = [sys.executable, str(Path(__file__).parent / f"bench_{stage}.py")]
        for extra in [["--full"], ["--laws"]] if chosen.full else [[]]:
            print(f"--- {stage} {' '.join(extra)}    after {time.perf_counter() - start:.0f} s", flush=True)
            if subprocess.run(program + extra, env=environment, cwd=ROOT, check=False).returncode:
                failed.append(f"{stage} {' '.join(extra)}")
    print_table([row for row in recorded() if row not in before])
    print(f"{time.perf_counter() - start:.0f} s in all; rows in {RESULTS.relative_to(ROOT)}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def recorded() -> Rows:
    """What results.json holds by now."""
    return json.loads(RESULTS.read_text()) if RESULTS.is_file() else []


def print_table(rows: Rows) -> None:
    """One a line."""
    heads = f"{'ours s':>9}{'peer s':>9}{'ratio':>8}{'goal':>6}{'ours MB':>9}{'peer MB':>9}"
    print(f"\n{'stage':<14}{'peer':<34}{'size':<44}{heads}")
    for row in rows:
        if row["peer"] != "law":
            sizes = f"{row['stage']:<14}{row['peer']:<34}{row['size']:<44}"
            print(sizes + f"{row['ours_s']:>9.2f}{row['peer_s']:>9.2f}{row['ratio']:>8.2f}{goal(row):>6}"
                  f"{row['ours_peak_mb']:>9.0f}{row['peer_peak_mb']:>9.0f}")  # fmt: skip


def goal(row: dict[str, Any]) -> str:
    """The ratio that is to be reached; '-': none was set."""
    found = (
        wanted for (stage, peer), wanted in GOALS.items() if row["stage"] == stage and row["peer"].startswith(peer)
    )
    return next((f"{wanted:g}" for wanted in found), "-")


if __name__ == "__main__":
    main()
