from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from m3rec_spark.errors import UsageError
from m3rec_spark.paths import held_alone, local_path, refuse_overlap, replacing, write_atomically


def test_local_paths(tmp_path: Path, monkeypatch) -> None:
    real = Path(os.path.realpath(tmp_path))
    monkeypatch.chdir(tmp_path)
    for text in (
        f"{tmp_path}/a b",
        f"{tmp_path}/a b/",
        "a b",
        "./x/../a b",
        f"file:{real}/a%20b",
        f"file://{real}/a%20b",
    ):
        assert local_path(text) == real / "a b", text
    assert local_path("a%20b") == real / "a%20b"  # only a URI is unquoted
    assert local_path("dbfs:/x/y") == Path("/dbfs/x/y")
    assert local_path("/Volumes/c/s/v") == Path("/Volumes/c/s/v")


@pytest.mark.parametrize("path", ["s3://bucket/x", "abfss://c@a/x", "hdfs://n/x", "http://h/x"])
def test_other_schemes_are_refused(path: str) -> None:
    with pytest.raises(UsageError, match=r"scheme '\w+:' is not a local path"):
        local_path(path)


def test_overlap_is_seen_through_every_disguise(tmp_path: Path, monkeypatch) -> None:
    source = tmp_path / "data"
    source.mkdir()
    (tmp_path / "link").symlink_to(source)
    monkeypatch.chdir(tmp_path)
    outputs = [source, f"{source}/", "data", "./data/../data", f"file:{source}", f"file://{source}/", "link", "link/ws"]
    for output in [*outputs, "data/ws", "."]:
        with pytest.raises(UsageError, match="overlap"):
            refuse_overlap(output, source)
    with pytest.raises(UsageError, match="overlap"):
        refuse_overlap("ws", "link/../data/../ws/items")
    for output in ("ws", "data2", "dat", tmp_path / "database"):
        refuse_overlap(output, source)  # a common beginning of the name is no overlap


def test_write_atomically_leaves_nothing_beside(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "new" / "x.json"
    write_atomically(path, b"old")
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [file.name for file in path.parent.iterdir()] == ["x.json"]


def test_replacing_leaves_the_old_file_when_the_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(path) as temporary:
        (temporary.write_text("half"), Path("absent").read_text())
    assert path.read_text() == "old"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_held_by_one_process(tmp_path: Path) -> None:
    """Another process is refused while it is held, and not after; that of a killed one is free."""
    code = "import sys, pathlib, m3rec_spark.paths as p\nwith p.held_alone(pathlib.Path(sys.argv[1])): print('held')"
    command = [sys.executable, "-c", code, str(tmp_path)]
    with held_alone(tmp_path):
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
        assert refused.stdout == ""
        assert f"UsageError: another process works in {tmp_path}: wait for it" in refused.stderr
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "held\n"
