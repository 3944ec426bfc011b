"""`mlflow models serve` and `mlflow models predict` on the artifact, as processes of their own; HTTP on 127.0.0.1."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from saved_model import saved

from m3rec_spark.ranking.recommender import Recommender, Request

MLFLOW = str(Path(sys.executable).with_name("mlflow"))
ENVIRONMENT = os.environ | {
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",  # MLflow looks for uvicorn there
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Recommender]:
    return saved(tmp_path_factory.mktemp("server"))


@pytest.fixture(scope="module")
def address(model: tuple[Path, Recommender]) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        MLFLOW,
        "models",
        "serve",
        "-m",
        str(model[0]),
        "-p",
        str(port),
        "-h",
        "127.0.0.1",
        "--env-manager",
        "local",
    ]
    log = open(model[0].parent / "server.log", "w")  # noqa: SIM115 - as long as the server
    server = subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", server)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=20)
        log.close()


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    until = time.monotonic() + 90
    while time.monotonic() < until:
        assert server.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError("the server does not answer")


def post(address: str, body: Any) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def records(*rows: dict[str, Any]) -> dict[str, Any]:
    return {"dataframe_records": list(rows)}


def test_lists_come_over_http(address: str, model: tuple[Path, Recommender]) -> None:
    known = {"market": "b", "user_id": "u1", "history": None, "k": 3}  # null, as MLflow wants the key in every row
    stranger = {"market": "b", "user_id": "who", "history": ["i 3"], "k": 3}
    status, answer = post(address, records(known, stranger))
    assert status == 200
    wanted = model[1].recommend([Request("b", "u1", k=3), Request("b", "who", ["i 3"], k=3)])
    assert [row["items"] for row in answer["predictions"]] == [one.items for one in wanted]
    assert [row["status"] for row in answer["predictions"]] == ["known", "from_history"]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (records({"market": "nowhere", "user_id": "u1"}), 200, "unknown_market"),
        (records({"market": "b", "user_id": "u1", "k": 10**12}), 200, "known"),
        (records({"market": "b", "user_id": 1, "k": 2}), 200, "popular"),
        (records({"market": "b", "k": -1}), 400, "a list has 1 item at least"),
        (records({"market": "b", "k": 10**30}), 400, ""),
        (records({"user_id": "u1"}), 400, "market"),
        (records({"market": "b", "history": "i 3"}), 400, "history"),
        (records({"market": "b", "history": {"a": 1}}), 400, "history"),
        (records({"market": None}), 400, "market"),
        (b'{"dataframe_records": [', 400, ""),
        (b"", 400, ""),
        ({"rows": []}, 400, ""),
    ],
)
def test_what_comes_in_is_answered_with_words(address: str, body: Any, status: int, words: str) -> None:
    found, answer = post(address, body)
    assert (found, words in json.dumps(answer)) == (status, True), answer
    assert answer


def test_many_at_once_get_their_own_answers(address: str, model: tuple[Path, Recommender]) -> None:
    users = [f"u{k}" for k in range(40)] * 3
    wanted = dict(zip(users, model[1].recommend([Request("b", user, k=5) for user in users]), strict=True))
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda user: post(address, records({"market": "b", "user_id": user, "k": 5})), users))
    for user, (status, answer) in zip(users, answers, strict=True):
        assert status == 200
        assert answer["predictions"][0]["items"] == wanted[user].items


def test_predict_from_the_command_line(model: tuple[Path, Recommender], tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text(json.dumps(records({"market": "b", "user_id": "u1", "k": 3})))
    files = ["-i", str(tmp_path / "in.json"), "-o", str(tmp_path / "out.json")]
    command = [MLFLOW, "models", "predict", "-m", str(model[0]), *files, "--env-manager", "local"]
    subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, timeout=120)
    answer = json.loads((tmp_path / "out.json").read_text())
    assert answer["predictions"][0]["items"] == model[1].recommend([Request("b", "u1", k=3)])[0].items
