"""The scoring server: `mlflow models serve` on a packed model, JSON over HTTP on 127.0.0.1, requests of one known user.

Rows: one client after another, and several at once; extra has p50 and p99 in ms and requests a second, and what the
answer itself takes without the server. The "peer" is a model that answers at once: the server's own cost.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import harness
import numpy as np
from bench_recommend import Shop

from m3rec_spark.ranking.bundle import open_bundle, seal_bundle
from m3rec_spark.ranking.recommender import Request
from m3rec_spark.tracking.registry import save_model

QUICK = {"users": 20_000, "items": 10_000, "requests": 400, "clients": 4}
FULL = QUICK | {"users": 200_000, "items": 50_000, "requests": 2_000}
EMPTY = """
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class Empty(PythonModel):
    def predict(self, context, model_input, params=None):
        return pd.DataFrame({"items": [["x"] * 10] * len(model_input)})


set_model(Empty())
"""


def main() -> None:
    harness.BENCH.mkdir(parents=True, exist_ok=True)
    if "--laws" in sys.argv:
        return
    sizes = harness.arguments(__doc__, QUICK, FULL)
    with tempfile.TemporaryDirectory(dir=harness.BENCH) as folder:
        place = Path(folder)
        shop = Shop(place / "shop", sizes.users, sizes.items)
        shop_size = shop.size
        seal_bundle(shop.folder, {})
        save_model(shop.folder, place / "model", [Request("m000000000", "u000000000")])
        save_empty(place / "empty")
        timings = {}
        for name in ("model", "empty"):
            with server(place / name) as address:
                for clients in (1, sizes.clients):
                    timings[name, clients] = ask(address, sizes, clients)
        answer = in_process(shop, sizes.requests)
    for clients in (1, sizes.clients):
        ours, theirs = timings["model", clients], timings["empty", clients]
        extra = figures(ours, clients) | {
            "answer_ms": round(1e3 * answer, 3),
            "server_p50_ms": figures(theirs, 1)["p50_ms"],
        }
        size = f"{shop_size} requests={sizes.requests} clients={clients}"
        seconds = [float(np.median(one)) for one in (ours, theirs)]
        row = harness.Row(
            "serving", "a model that answers at once", size, round(seconds[0], 5), round(seconds[1], 5),
            round(seconds[1] / seconds[0], 3), 0, 0, len(ours), len(theirs), round(harness.gemm_gflops(), 1), extra,
        )  # fmt: skip
        harness.record(row)
        print(extra)


def figures(latencies: list[float], clients: int) -> dict[str, float]:
    p50, p99 = (round(1e3 * float(np.percentile(latencies, q)), 2) for q in (50, 99))
    return {"p50_ms": p50, "p99_ms": p99, "requests_per_s": round(clients * len(latencies) / sum(latencies), 1)}


def ask(address: str, sizes: Any, clients: int) -> list[float]:
    """Seconds of every request; a tenth more go ahead to warm up."""
    users = np.random.default_rng(1).integers(0, sizes.users, sizes.requests + sizes.requests // 10)

    def one(user: int) -> float:
        body = json.dumps(
            {"dataframe_records": [{"market": "m000000000", "user_id": f"u{user:09d}", "k": 10}]}
        ).encode()
        request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
        start = time.perf_counter()
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
        return time.perf_counter() - start

    with ThreadPoolExecutor(clients) as pool:
        return list(pool.map(one, users.tolist()))[sizes.requests // 10 :]


def in_process(shop: Shop, requests: int) -> float:
    """Seconds of an answer without a server, the median."""
    served, found = open_bundle(shop.folder), []
    for user in np.random.default_rng(1).integers(0, shop.arrays.n_rows, requests).tolist():
        start = time.perf_counter()
        served.recommend([Request("m000000000", f"u{user:09d}")])
        found.append(time.perf_counter() - start)
    return float(np.median(found))


def save_empty(target: Path) -> None:
    import mlflow.pyfunc

    script = target.with_suffix(".py")
    script.write_text(EMPTY)
    mlflow.pyfunc.save_model(path=str(target), python_model=str(script), pip_requirements=["mlflow"])


@contextmanager
def server(model: Path) -> Iterator[str]:
    """`mlflow models serve` on a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(Path(sys.executable).with_name("mlflow")), "models", "serve", "-m", str(model), "-p", str(port),
        "-h", "127.0.0.1", "--env-manager", "local",
    ]  # fmt: skip
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # MLflow looks for uvicorn there
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "PATH": path}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        for _ in range(300):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=2):
                    break
            except OSError:
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=20)


if __name__ == "__main__":
    main()
