"""All benchmarks one after another, then every ratio against its target: make bench, make bench-full.

Each stage is a program of its own (its sizes: python benchmarks/bench_<stage>.py --help), so that none runs in the
memory or the warm caches of another. --only gram,walks runs some; --full takes the large sizes and the scaling laws.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from harness import RESULTS, ROOT, THREADS

STAGES = ("gram", "ease", "sweep", "neighbourhood", "walks", "skipgram", "recommend", "serving")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="large sizes and scaling laws")
    parser.add_argument("--only", default=",".join(STAGES), help="stages, separated by commas")
    chosen = parser.parse_args()
    environment = os.environ | {f"{name}_NUM_THREADS": str(THREADS) for name in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
    failed, start = [], time.perf_counter()
    for stage in chosen.only.split(","):
        program = [sys.executable, str(Path(__file__).parent / f"bench_{stage}.py")]
        for extra in [["--full"], ["--laws"]] if chosen.full else [[]]:
            print(f"--- {stage} {' '.join(extra)}    after {time.perf_counter() - start:.0f} s", flush=True)
            if subprocess.run(program + extra, env=environment, cwd=ROOT, check=False).returncode:
                failed.append(f"{stage} {' '.join(extra)}")
    print_table(json.loads(RESULTS.read_text()))
    print(f"{time.perf_counter() - start:.0f} s in all; rows in {RESULTS.relative_to(ROOT)}")
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}")


def print_table(rows: list[dict[str, object]]) -> None:
    """The rows of results.json, one a line."""
    print(f"\n{'stage':<14}{'peer':<34}{'size':<44}{'ours s':>9}{'peer s':>9}{'ratio':>8}{'ours MB':>9}{'peer MB':>9}")
    for row in rows:
        if row["peer"] != "law":
            sizes = f"{row['stage']:<14}{row['peer']:<34}{row['size']:<44}"
            print(sizes + f"{row['ours_s']:>9.2f}{row['peer_s']:>9.2f}{row['ratio']:>8.2f}"
                  f"{row['ours_peak_mb']:>9.0f}{row['peer_peak_mb']:>9.0f}")  # fmt: skip


if __name__ == "__main__":
    main()
