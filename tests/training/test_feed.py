"""Both readers: every row once an epoch, orders by seed and epoch, batches mixed, damage told."""

from __future__ import annotations

import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from m3rec_spark.errors import CorruptTableError, DataError, UsageError
from m3rec_spark.training import feed

ROWS = 1100
READERS = ["petastorm", "arrow"]
Folder = Callable[[str], Path]


def write(folder: Path, first: int, rows: int, group: int) -> None:
    """Rows first .. first + rows - 1: item = the row's number, market = 0 in the lower half of all rows, else 1."""
    item = np.arange(first, first + rows, dtype=np.int32)
    table = pa.table({"market": (item >= ROWS // 2).astype(np.int32), "user": item // 3, "item": item})
    pq.write_table(table, folder / f"part-{first:05d}.parquet", row_group_size=group)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven row groups in three files, one of them empty, and Spark's leftovers."""
    home = tmp_path / "feed ü"
    home.mkdir()
    write(home, 0, 700, group=150)
    write(home, 700, 400, group=300)
    write(home, ROWS, 0, group=1)
    (home / "_SUCCESS").touch()
    return home


def read(folder: Path, reader: Any, seed: int = 1, epoch: int = 0, size: int = 128) -> np.ndarray:
    return np.concatenate([np.stack(b, axis=1) for b in feed.batches(folder, size, seed, epoch, reader)])


@pytest.mark.parametrize("reader", READERS)
def test_every_row_once_each_epoch_in_another_order(folder: Path, reader: str) -> None:
    truth = pq.read_table(folder).to_pandas()[feed.COLUMNS].to_numpy()
    epochs = [read(folder, reader, epoch=epoch) for epoch in range(4)]
    for rows in epochs:
        assert rows.dtype == np.int64
        assert len(rows) == feed.footer_rows(folder) == ROWS
        np.testing.assert_array_equal(rows[rows[:, 2].argsort()], truth)
    assert len({rows.tobytes() for rows in epochs}) == 4


@pytest.mark.parametrize("reader", READERS)
def test_order_follows_seed_and_epoch_alone(folder: Path, reader: str) -> None:
    again = folder.parent / "another place"
    shutil.copytree(folder, again)
    for seed in (0, 5):
        np.testing.assert_array_equal(read(folder, reader, seed, epoch=2), read(again, reader, seed, epoch=2))
    assert not np.array_equal(read(folder, reader, seed=0), read(folder, reader, seed=5))


@pytest.mark.parametrize("reader", READERS)
def test_batches_have_one_size_and_mix_the_markets(folder: Path, reader: str) -> None:
    batches = list(feed.batches(folder, 128, 1, 0, reader))
    assert [len(batch.item) for batch in batches] == [128] * 8 + [76]
    shares = [batch.market.mean() for batch in batches]  # the files hold them one after the other
    assert all(0.3 < share < 0.7 for share in shares), shares


def test_a_small_buffer_still_gives_every_row_in_batches_of_one_size(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed, "BUFFER_ROWS", 200)
    batches = list(feed.batches(folder, 64, 1, 0, "arrow"))
    assert [len(batch.item) for batch in batches] == [64] * 17 + [12]
    assert sorted(np.concatenate([batch.item for batch in batches]).tolist()) == list(range(ROWS))


@pytest.mark.parametrize("change", ["short", "long"])
def test_a_short_or_long_epoch_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch, change: str) -> None:
    whole = feed._petastorm

    def faulty(path: Path, generator: np.random.Generator) -> Iterator[np.ndarray]:
        chunks = list(whole(path, generator))
        yield from chunks[:-1] if change == "short" else [*chunks, chunks[0][:1]]

    monkeypatch.setattr(feed, "_petastorm", faulty)
    with pytest.raises(CorruptTableError, match=r"of the 1,100 rows .* in epoch 3"):
        read(folder, "petastorm", epoch=2)


def test_petastorm_reads_whole_epochs_many_times(folder: Path) -> None:
    assert all(len(read(folder, "petastorm", epoch=epoch)) == ROWS for epoch in range(25))  # 0.13.1 loses some


def test_no_future_warnings_come_through_and_others_do(folder: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in feed.batches(folder, 500, 1, 0, "petastorm"):
            warnings.warn("the caller's own", FutureWarning, stacklevel=1)
    messages = [str(w.message) for w in caught if issubclass(w.category, FutureWarning)]
    assert messages == ["the caller's own"] * 3


def test_without_petastorm_the_arrow_reader_still_works(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "petastorm", None)
    with pytest.raises(UsageError, match=r"train\.feed=arrow"):
        read(folder, "petastorm")
    assert len(read(folder, "arrow")) == ROWS


@pytest.mark.parametrize("name", ["_common_metadata", "_metadata"])
def test_petastorm_metadata_is_refused_before_it_is_opened(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(DataError, match=name):
        read(folder, "petastorm")


@pytest.mark.parametrize("sign", ["#", "?"])
def test_a_path_that_petastorm_would_cut_is_refused(folder: Path, sign: str) -> None:
    moved = folder.rename(folder.parent / f"a{sign}b")
    with pytest.raises(UsageError, match="ends at '#' or '\\?'"):
        read(moved, "petastorm")
    assert len(read(moved, "arrow")) == ROWS


def test_a_path_with_percent_and_spaces_is_read_as_it_is(folder: Path) -> None:
    assert len(read(folder.rename(folder.parent / "100%20 b;c"), "petastorm")) == ROWS


@pytest.mark.parametrize("reader", READERS)
def test_an_empty_feed_is_an_error(tmp_path: Path, reader: str) -> None:
    write(tmp_path, 0, 0, group=1)
    with pytest.raises(DataError, match="no train pairs"):
        read(tmp_path, reader)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("damage", ["footer", "body"])
def test_a_damaged_file_is_named(folder: Path, reader: str, damage: str) -> None:
    file = folder / "part-00700.parquet"
    content = file.read_bytes()
    file.write_bytes(content[:-20] if damage == "footer" else content[:4] + b"\xff" * 400 + content[404:])
    with pytest.raises(CorruptTableError, match="cannot be read"):
        read(folder, reader)


@pytest.mark.parametrize("reader", READERS)
def test_nulls_are_refused(tmp_path: Path, reader: str) -> None:
    table = pa.table({"market": [0, 0], "user": [1, None], "item": [2, 3]})
    pq.write_table(table, tmp_path / "part-0.parquet")
    with pytest.raises(DataError, match="user float64"):
        read(tmp_path, reader)
