from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from m3rec_spark.data.download import XMARKET_FILES, PublicFile, download_xmarket
from m3rec_spark.errors import DataError, UsageError

GOOD = b"userId\titemId\trating\nu1\tp1\t1.0\n" * 5000  # several chunks
FILES = {"s1/train.tsv": PublicFile(len(GOOD), hashlib.sha256(GOOD).hexdigest())}


class Server(ThreadingHTTPServer):
    """Answers every path with `body`; `announced` is the length it claims, `wait` the seconds before the body."""

    daemon_threads = True
    body, announced, status, wait, requests = GOOD, len(GOOD), 200, 0.0, 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/DATA"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(self.server.announced))
        self.end_headers()
        time.sleep(self.server.wait)
        self.wfile.write(self.server.body)

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with Server(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield running
        running.shutdown()


def refusal(server: Server, to: Path, timeout: float = 10.0) -> str:
    """The message of a download that must fail, and must leave nothing new behind."""
    before = sorted(to.rglob("*.tsv"))
    with pytest.raises(DataError) as caught:
        download_xmarket(to, server.url, FILES, timeout)
    assert [path for path in sorted(to.rglob("*")) if path.is_file()] == before
    return str(caught.value)


def test_a_good_file_is_put_in_place(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "m3rec_spark"):
        download_xmarket(tmp_path / "new" / "folder", server.url + "/", FILES)
    assert (tmp_path / "new" / "folder" / "s1" / "train.tsv").read_bytes() == GOOD
    assert [path.name for path in (tmp_path / "new" / "folder" / "s1").iterdir()] == ["train.tsv"]
    assert f"1/1 s1/train.tsv: {len(GOOD):,} bytes, digest right" in caplog.text


def test_a_right_file_is_kept_and_said_so(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    download_xmarket(tmp_path, server.url, FILES)
    with caplog.at_level(logging.INFO, "m3rec_spark"):
        download_xmarket(tmp_path, server.url, FILES)
    assert server.requests == 1
    assert "there already" in caplog.text


@pytest.mark.parametrize("wrong", [GOOD[:-1], GOOD[:-1] + b" "], ids=["shorter", "same size"])
def test_a_wrong_file_is_fetched_again(server: Server, tmp_path: Path, wrong: bytes) -> None:
    place = tmp_path / "s1" / "train.tsv"
    place.parent.mkdir()
    place.write_bytes(wrong)
    download_xmarket(tmp_path, server.url, FILES)
    assert place.read_bytes() == GOOD


def test_a_tampered_file_is_refused_with_both_digests(server: Server, tmp_path: Path) -> None:
    server.body = GOOD[:-2] + b"2\n"
    message = refusal(server, tmp_path)
    assert FILES["s1/train.tsv"].sha256 in message
    assert hashlib.sha256(server.body).hexdigest() in message


def test_a_tampered_file_does_not_replace_what_is_there(server: Server, tmp_path: Path) -> None:
    place = tmp_path / "s1" / "train.tsv"
    place.parent.mkdir()
    place.write_bytes(b"mine")
    server.body, server.announced = b"wrong", 5
    assert "got 5 bytes" in refusal(server, tmp_path)
    assert place.read_bytes() == b"mine"


def test_a_file_that_never_ends_is_cut_off(server: Server, tmp_path: Path) -> None:
    server.body, server.announced = GOOD * 20, len(GOOD) * 20
    assert f"got more than {len(GOOD)} bytes" in refusal(server, tmp_path)


def test_a_missing_file_is_told(server: Server, tmp_path: Path) -> None:
    server.status = 404
    message = refusal(server, tmp_path)
    assert "404" in message
    assert f"{server.url}/s1/train.tsv" in message


def test_a_truncated_answer_is_refused(server: Server, tmp_path: Path) -> None:
    server.body = GOOD[: len(GOOD) // 2]
    assert f"got {len(GOOD) // 2} bytes" in refusal(server, tmp_path)


def test_a_silent_server_is_given_up(server: Server, tmp_path: Path) -> None:
    server.wait = 3.0
    start = time.monotonic()
    assert "timed out" in refusal(server, tmp_path, timeout=0.2)
    assert time.monotonic() - start < 2.5


def test_an_absent_server_is_told_with_a_way_out(server: Server, tmp_path: Path) -> None:
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(DataError, match=r"cannot get .*source\.path") as caught:
        download_xmarket(tmp_path, url, FILES)
    assert caught.value.exit_code == 2


def test_wrong_arguments_are_told(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write to"):
        download_xmarket(tmp_path / "file", server.url, FILES)
    with pytest.raises(DataError, match="unknown url type"):
        download_xmarket(tmp_path, "nonsense", FILES)


def test_the_pinned_digests_are_those_of_the_real_files(xmarket: Path) -> None:
    assert len(XMARKET_FILES) == 10
    for name, pinned in XMARKET_FILES.items():
        content = (xmarket / name).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == pinned, name
