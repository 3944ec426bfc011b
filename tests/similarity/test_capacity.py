from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from m3rec_spark.errors import CapacityError
from m3rec_spark.similarity import capacity


def write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def test_container_limit_v2(tmp_path: Path) -> None:
    write(tmp_path, memory__max="1000\n", memory__current="700\n", memory__stat="anon 600\ninactive_file 50\n")
    assert capacity.free_bytes(tmp_path) == 1000 - 700 + 50


def test_container_limit_v1(tmp_path: Path) -> None:
    stat = "cache 9\ntotal_inactive_file 5\n"
    folder = tmp_path / "memory"
    folder.mkdir()
    (folder / "memory.limit_in_bytes").write_text("100\n")
    (folder / "memory.usage_in_bytes").write_text("40\n")
    (folder / "memory.stat").write_text(stat)
    assert capacity.free_bytes(tmp_path) == 100 - 40 + 5


def test_no_limit_leaves_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 123}))
    assert capacity.free_bytes(tmp_path) == 123  # no cgroup files at all
    write(tmp_path, memory__max="max\n", memory__current="7\n", memory__stat="inactive_file 1\n")
    assert capacity.free_bytes(tmp_path) == 123


def test_refuses_with_bytes_and_ways_out() -> None:
    with pytest.raises(CapacityError, match=r"A walk needs 2,000,000,001 bytes.*may take 2,000,000,000.*go by bus"):
        capacity.require(2_000_000_001, "A walk", "go by bus", limit_gb=2)
    capacity.require(2_000_000_000, "A walk", "go by bus", limit_gb=2)


def test_by_default_a_share_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "free_bytes", lambda: 1000)
    capacity.require(800, "A walk", "go by bus")
    with pytest.raises(CapacityError):
        capacity.require(801, "A walk", "go by bus")
