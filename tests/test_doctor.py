from __future__ import annotations

import os
import sqlite3
import stat
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from m3rec_spark import doctor
from m3rec_spark.doctor import Check, check_java, check_python, check_tracking, check_versions, check_workspace, report

TESTED = {
    "pyspark": "4.0.5", "pyarrow": "14.0.2", "pandas": "2.3.3", "numpy": "1.26.4", "scipy": "1.15.3",
    "torch": "2.13.0+cpu", "mlflow": "3.17.2", "petastorm": "0.12.1",
}  # fmt: skip


def problems(versions: dict[str, str]) -> list[tuple[str, str]]:
    return [(check.name, check.status) for check in check_versions(versions) if check.status != "ok"]


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


# --- versions


def test_the_tested_set_is_fine() -> None:
    assert problems(TESTED) == []


@pytest.mark.parametrize(
    ("package", "version"),
    [
        ("pandas", "3.0.6"), ("pandas", "3.0.0rc1"), ("pyarrow", "14.0.0"), ("pyarrow", "15.0.0"), ("numpy", "2.0.0"),
        ("petastorm", "0.13.1"), ("pyspark", "4.0.0"), ("pyspark", "5.0.0.dev1"),
    ],
)  # fmt: skip
def test_each_trap_fails_with_a_fix(package: str, version: str) -> None:
    assert problems(TESTED | {package: version}) == [(package, "fail")]
    (trap,) = (check for check in check_versions(TESTED | {package: version}) if check.status == "fail")
    assert version in trap.detail
    assert trap.fix


def test_without_petastorm_a_modern_stack_is_fine() -> None:
    modern = {name: version for name, version in TESTED.items() if name != "petastorm"}
    modern |= {"pyarrow": "21.0.0", "numpy": "2.3.1", "pyspark": "4.1.0"}
    assert problems(modern) == [("petastorm", "warn")]
    (absent,) = (check for check in check_versions(modern) if check.name == "petastorm")
    assert "train.feed=arrow" in absent.fix


def test_an_absent_package_fails() -> None:
    assert problems({name: version for name, version in TESTED.items() if name != "torch"}) == [("torch", "fail")]


def test_the_pandas_option_for_arrow_strings_fails() -> None:
    with pd.option_context("future.infer_string", True):
        assert problems(TESTED) == [("pandas", "fail")]


@pytest.mark.parametrize(
    ("version", "status"), [((3, 9), "fail"), ((3, 10), "ok"), ((3, 11), "ok"), ((3, 12), "warn"), ((3, 13), "warn")]
)
def test_python(version: tuple[int, int], status: str) -> None:
    assert check_python(version).status == status


# --- Java and the workers' Python


def java(folder: Path, version: str) -> Path:
    return script(folder / "bin" / "java", f"""echo 'openjdk version "{version}" 2025-04-15' >&2""")


@pytest.mark.parametrize(
    ("version", "status"),
    [("17.0.15", "ok"), ("21.0.1", "ok"), ("11.0.2", "fail"), ("1.8.0_402", "fail"), ("25", "fail")],
)
def test_java_home_comes_first(tmp_path: Path, version: str, status: str) -> None:
    java(tmp_path / "home", version)
    java(tmp_path / "other", "17.0.1")
    check = check_java({"JAVA_HOME": str(tmp_path / "home"), "PATH": str(tmp_path / "other" / "bin")})
    assert check.status == status
    assert str(tmp_path / "home") in check.detail


def test_java_of_the_path(tmp_path: Path) -> None:
    java(tmp_path, "21.0.1")
    assert check_java({"PATH": f"/nowhere{os.pathsep}{tmp_path / 'bin'}"}) == Check(
        "java", "ok", f"21 at {tmp_path / 'bin' / 'java'}"
    )
    assert check_java({"PATH": "/nowhere"}).status == "fail"
    assert "does not run" in check_java({"JAVA_HOME": str(tmp_path / "absent"), "PATH": str(tmp_path / "bin")}).detail
    script(tmp_path / "broken" / "bin" / "java", "exit 1")
    assert check_java({"JAVA_HOME": str(tmp_path / "broken")}).status == "fail"


def test_java_is_not_needed_for_a_remote_session() -> None:
    assert check_java({"SPARK_REMOTE": "sc://host", "PATH": ""}).status == "ok"


def test_workers_must_run_the_same_python(tmp_path: Path) -> None:
    assert doctor._check_worker_python({}) == []
    assert [check.status for check in doctor._check_worker_python({"PYSPARK_PYTHON": sys.executable})] == ["ok"]
    other = script(tmp_path / "python3", "echo 3.7")
    (check,) = doctor._check_worker_python({"PYSPARK_PYTHON": str(other)})
    assert (check.status, "3.7" in check.detail, sys.executable in check.fix) == ("fail", True, True)
    assert doctor._check_worker_python({"PYSPARK_PYTHON": str(tmp_path / "absent")})[0].status == "fail"


# --- places


def test_workspace(tmp_path: Path) -> None:
    check = check_workspace(str(tmp_path / "new" / "deep"))
    assert check.status == "ok"
    assert "GiB free" in check.detail
    assert list(tmp_path.iterdir()) == []  # looking makes nothing
    (tmp_path / "file").touch()
    assert check_workspace(str(tmp_path / "file" / "ws")).status == "fail"
    assert check_workspace("s3://bucket/ws").status == "fail"


def test_a_full_disk_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 20})())
    assert check_workspace(str(tmp_path)).status == "warn"


def test_old_mlruns_warns(tmp_path: Path) -> None:
    assert doctor._check_old_mlruns(tmp_path) == []
    (tmp_path / "mlruns").mkdir()
    assert [check.status for check in doctor._check_old_mlruns(tmp_path)] == ["warn"]


# --- tracking


def sqlite_check(path: Path) -> Check:
    return check_tracking(f"sqlite:///{path}", ".")


def test_sqlite(tmp_path: Path) -> None:
    path = tmp_path / "mlflow.db"
    assert sqlite_check(path).status == "ok"
    assert not path.exists()
    with sqlite3.connect(path) as store:
        store.execute("CREATE TABLE runs (id)")
    assert sqlite_check(path).status == "ok"
    store.execute("BEGIN EXCLUSIVE")
    assert "locked" in sqlite_check(path).detail
    store.close()
    path.write_bytes(b"no database, but long enough for a header" * 20)
    assert "not a database" in sqlite_check(path).detail
    (tmp_path / "file").touch()
    assert sqlite_check(tmp_path / "file" / "mlflow.db").status == "fail"


def test_a_folder_as_store_is_refused_as_mlflow_does(tmp_path: Path) -> None:
    for uri in (str(tmp_path / "mlruns"), f"file:{tmp_path}/mlruns"):
        assert (check_tracking(uri, ".").status, "sqlite" in check_tracking(uri, ".").fix) == ("fail", True)
    assert check_tracking("postgresql://me:secret@host/db", ".").detail == "postgresql: not tried"


@pytest.fixture
def health(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A tracking server on loopback; `status` is what it answers, `paths` what it was asked."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    state: dict[str, Any] = {"status": 200, "paths": [], "silent": threading.Event()}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state["paths"].append(self.path)
            if state["status"] is None:
                state["silent"].wait(10)
                return
            self.send_response(state["status"])
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        state["address"] = f"127.0.0.1:{server.server_port}"
        yield state
        state["silent"].set()
        server.shutdown()


def test_a_server_that_answers(health: dict[str, Any]) -> None:
    assert check_tracking(f"http://{health['address']}/base/", ".").status == "ok"
    assert health["paths"] == ["/base/health"]
    health["status"] = 401
    assert check_tracking(f"http://{health['address']}", ".").status == "warn"


def test_a_password_is_not_shown(health: dict[str, Any]) -> None:
    check = check_tracking(f"http://me:secret@{health['address']}", ".")
    assert check.status == "ok"
    assert "secret" not in str(check)


def test_a_server_that_is_silent_or_gone(health: dict[str, Any]) -> None:
    health["status"] = None
    assert "timed out" in check_tracking(f"http://{health['address']}", ".", timeout=0.2).detail
    gone = check_tracking("http://127.0.0.1:1", ".")
    assert (gone.status, "cannot be reached" in gone.detail) == ("fail", True)


def test_without_a_setting_the_store_lies_in_the_workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert str(tmp_path / "mlflow.db") in check_tracking(None, str(tmp_path)).detail


# --- the whole


def test_report_counts_and_says_what_to_do() -> None:
    text = report([Check("a", "ok", "fine"), Check("b", "warn", "so so", "mend it"), Check("c", "fail", "bad", "do x")])
    assert text.splitlines() == [
        "ok    a            fine",
        "warn  b            so so",
        "                   -> mend it",
        "fail  c            bad",
        "                   -> do x",
        "3 checks: 1 failed, 1 warned",
    ]


def test_every_check_of_this_machine_says_what_it_saw(tmp_path: Path) -> None:
    checks = doctor.run_checks(str(tmp_path), f"sqlite:///{tmp_path}/mlflow.db")
    assert {"python", "machine", "pyspark", "torch", "java", "workspace", "tracking"} <= {
        check.name for check in checks
    }
    for check in checks:
        assert check.detail
        assert (check.fix == "") == (check.status == "ok")
