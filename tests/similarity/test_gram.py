from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from faults import folder_bytes
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyspark.sql import SparkSession

from m3rec_spark.data.arrays import MarketArrays, save_arrays
from m3rec_spark.data.synthetic import generate_arrays
from m3rec_spark.errors import DataError, UsageError
from m3rec_spark.schema import GRAM
from m3rec_spark.similarity import gram as module
from m3rec_spark.similarity import gram_rows
from m3rec_spark.similarity.entries import save_entries, transpose
from m3rec_spark.similarity.gram import GramReport, Task, cap_histories, dense_gram, write_gram
from m3rec_spark.similarity.gram_rows import cells_of, pack, row_pairs

Cell = tuple[int, int, int]
MARKETS = st.lists(st.lists(st.sets(st.integers(0, 9)), max_size=8), min_size=1, max_size=3)


def shop(markets: list[list[set[int]]], n_items: int = 0, sold: list[list[int]] | None = None) -> MarketArrays:
    """The arrays of users' item sets, a list a market. sold: the items of each market, else those that users have."""
    sold = sold or [sorted(set().union(*users)) for users in markets]
    offsets = np.cumsum([0, *map(len, sold)])
    place = [{item: offset + k for k, item in enumerate(items)} for offset, items in zip(offsets, sold, strict=False)]
    histories = [
        [slot[item] for item in sorted(user)] for slot, users in zip(place, markets, strict=True) for user in users
    ]
    slots = np.array([slot for history in histories for slot in history], np.int32)
    return MarketArrays(
        indptr=np.cumsum([0, *map(len, histories)]).astype(np.int64),
        slots=slots,
        user_offsets=np.cumsum([0, *map(len, markets)]).astype(np.int64),
        slot_items=np.array([item for items in sold for item in items], np.int32),
        slot_offsets=offsets.astype(np.int64),
        slot_counts=np.bincount(slots, minlength=offsets[-1]).astype(np.int32),
        n_items=n_items or 1 + max((item for items in sold for item in items), default=0),
    )


def market_cells(arrays: MarketArrays, market: int) -> list[Cell]:
    entries = transpose(arrays.indptr, arrays.slots, len(arrays.slot_items))
    first, last = (int(x) for x in arrays.slot_offsets[market : market + 2])
    pairs = int(row_pairs(arrays.indptr, entries)[first:last].sum())
    batches = cells_of(arrays, entries, Task(market, first, last, pairs))
    return [cell for batch in batches for cell in zip(*(column.tolist() for column in batch), strict=True)]


def reference(arrays: MarketArrays, market: int) -> list[Cell]:
    X = arrays.history(market).toarray().astype(np.int64)
    items = arrays.slot_items[arrays.market_slots(market)]
    half = np.triu(X.T @ X)
    return [(int(items[a]), int(items[b]), int(half[a, b])) for a, b in np.argwhere(half)]


def write(
    spark: SparkSession, arrays: MarketArrays, folder: Path, pairs_per_task: int = 150
) -> tuple[Path, GramReport]:
    source, out = folder / "source", folder / "gram"
    source.mkdir(parents=True)
    out.mkdir()
    save_arrays(arrays, source)
    save_entries(transpose(arrays.indptr, arrays.slots, len(arrays.slot_items)), source)
    return out, write_gram(spark, source, source, out, pairs_per_task)


def rows(folder: Path) -> list[tuple[int, ...]]:
    """In the order of the files."""
    table = ds.dataset(folder, format="parquet").to_table()
    return list(zip(*(table[name].to_pylist() for name in GRAM.fieldNames()), strict=True))


def random_shop(seed: int = 0) -> MarketArrays:
    return generate_arrays(markets=3, users=20, own_items=3, shared_items=5, history=5.0, groups=2, seed=seed)


def test_two_users_by_hand() -> None:
    # one user has 2, 7, the other 5, 7: item 7 twice, (2, 7) and (5, 7) once, (2, 5) never
    assert market_cells(shop([[{7, 2}, {7, 5}]]), 0) == [(2, 2, 1), (2, 7, 1), (5, 5, 1), (5, 7, 1), (7, 7, 2)]


def test_markets_do_not_meet() -> None:
    # the same items in two markets: user {1, 2} here, user {2, 3} there
    arrays = shop([[{1, 2}], [{2, 3}]])
    assert market_cells(arrays, 0) == [(1, 1, 1), (1, 2, 1), (2, 2, 1)]
    assert market_cells(arrays, 1) == [(2, 2, 1), (2, 3, 1), (3, 3, 1)]


@given(MARKETS)
@settings(deadline=None)
def test_upper_half_of_the_product(markets: list[list[set[int]]]) -> None:
    arrays = shop(markets)
    for market in range(len(markets)):
        assert market_cells(arrays, market) == reference(arrays, market)


@pytest.mark.parametrize("history", [6.0, 40.0])  # rows of few pairs, collected by bits, and of many, by a pass
def test_both_ways_to_collect_a_row(history: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gram_rows, "CELLS", 100)  # several batches, cut between rows
    arrays = generate_arrays(
        markets=2, users=60, own_items=100, shared_items=100, history=history, groups=3, seed=1
    )  # fmt: skip
    entries = transpose(arrays.indptr, arrays.slots, 400)
    rest = np.r_[np.arange(200, 0, -1), np.arange(200, 0, -1)]
    dense = int((row_pairs(arrays.indptr, entries) >= rest).sum())
    assert (dense < 100) if history == 6.0 else (300 < dense < 400)
    for market in (0, 1):
        assert market_cells(arrays, market) == reference(arrays, market)


def test_every_bit_of_a_word_has_its_place() -> None:
    # item 0 is bought with each of the others by one user of two items: row 0 has 130 cells, 130 pairs + 129
    lone = [shop([[{0, item}]], sold=[list(range(130))]) for item in range(1, 130)]
    assert [market_cells(arrays, 0)[1] for arrays in lone] == [(0, item, 1) for item in range(1, 130)]


def test_row_pairs_by_hand() -> None:
    # histories 0 1 2 and 1 2: row 0 counts 3 pairs (of the first user), row 1 counts 2 + 2, row 2 counts 1 + 1
    arrays = shop([[{0, 1, 2}, {1, 2}]])
    entries = transpose(arrays.indptr, arrays.slots, 3)
    assert row_pairs(arrays.indptr, entries).tolist() == [3, 4, 2]


def test_pack_by_hand() -> None:
    # slots 0-3 of market 0, none of market 1, 4-6 of market 2; the cold slots 2 and 6 cost nothing
    pairs = np.array([3, 4, 0, 12, 1, 1, 0])
    tasks = pack(pairs, np.array([0, 4, 4, 7]), pairs_per_task=7)
    assert tasks == [Task(0, 0, 3, 7), Task(0, 3, 4, 12), Task(2, 4, 7, 2)]
    assert pack(np.zeros(3, np.int64), np.array([0, 3]), 7) == []


def test_a_long_history_is_split() -> None:
    """A user of 3,000 items has 4.5 million of 4.6 million pairs: no task gets more than its share and a row."""
    indptr = np.cumsum([0, 3000, *[2] * 1000]).astype(np.int64)
    slots = np.r_[np.arange(3000), np.tile([5, 2000], 1000)].astype(np.int32)
    pairs = row_pairs(indptr, transpose(indptr, slots, 3000))
    assert pairs.sum() == 3000 * 3001 // 2 + 1000 * 3
    tasks = pack(pairs, np.array([0, 3000]), 100_000)
    assert sum(task.pairs for task in tasks) == pairs.sum()
    assert [task.first for task in tasks[1:]] == [task.last for task in tasks[:-1]]
    assert max(task.pairs for task in tasks) <= 100_000
    assert len(tasks) <= 2 + pairs.sum() // (100_000 - pairs.max())


@pytest.mark.parametrize("pairs_per_task", [1, 150, 10**9])  # a task a row, a few rows, a market
def test_written_files(spark: SparkSession, tmp_path: Path, pairs_per_task: int) -> None:
    arrays = random_shop()
    folder, report = write(spark, arrays, tmp_path, pairs_per_task)
    expected = [(market, *cell) for market in range(3) for cell in reference(arrays, market)]
    assert rows(folder) == expected  # also in order, over the files
    lengths = np.diff(arrays.indptr)
    assert (report.cells, report.pairs) == (len(expected), int((lengths * (lengths + 1) // 2).sum()))
    files = list(folder.iterdir())
    assert len(files) == report.tasks
    assert sum(file.stat().st_size for file in files) == report.file_bytes
    assert 0 < report.longest_task <= report.task_seconds
    frame = spark.read.parquet(str(folder))
    assert frame.schema.fieldNames() == GRAM.fieldNames()
    assert sorted(tuple(row) for row in frame.collect()) == expected  # Spark reads these encodings, too


def test_row_groups_tell_their_rows(spark: SparkSession, tmp_path: Path) -> None:
    folder, _ = write(spark, random_shop(), tmp_path, 10**9)
    for file in sorted(folder.iterdir()):
        group = pq.ParquetFile(file).metadata.row_group(0)
        market, item_a = group.column(0).statistics, group.column(1).statistics
        assert market.min == market.max == int(file.stem.removeprefix("part-"))
        assert item_a.min < item_a.max


def test_a_second_run_gives_the_same_bytes(spark: SparkSession, tmp_path: Path) -> None:
    first, second = (write(spark, random_shop(), tmp_path / name)[0] for name in "ab")
    assert folder_bytes(first) == folder_bytes(second)
    assert len(folder_bytes(first)) > 3


@pytest.mark.parametrize("pairs_per_task", [1, 1000])
def test_counts_do_not_depend_on_tasks_or_order_of_markets(
    spark: SparkSession, tmp_path: Path, pairs_per_task: int
) -> None:
    markets = [[{0, 1, 3}, {1, 3}], [{2, 3}], [{0, 3, 4}, {4}, set()]]
    order = [2, 0, 1]
    one, _ = write(spark, shop(markets, 5), tmp_path / "a", 10**9)
    other, _ = write(spark, shop([markets[m] for m in order], 5), tmp_path / "b", pairs_per_task)
    assert sorted((order[m], *cell) for m, *cell in rows(other)) == rows(one)


def test_a_shop_without_pairs(spark: SparkSession, tmp_path: Path) -> None:
    # an empty market, users without items, an item that nobody has, and a user of one item
    arrays = shop([[], [set(), {4}]], n_items=9, sold=[[], [3, 4]])
    folder, report = write(spark, arrays, tmp_path)
    assert rows(folder) == [(1, 4, 4, 1)]
    assert (report.tasks, report.cells, report.pairs) == (1, 1, 1)
    nobody, report = write(spark, shop([[set()]], n_items=2, sold=[[0, 1]]), tmp_path / "nobody")
    assert (report, list(nobody.iterdir())) == (GramReport(0, 0, 0, 0, 0.0, 0.0), [])


def done(tasks: list[Task], folder: Path) -> list[dict[str, int]]:
    for number in range(len(tasks)):
        (folder / f"part-{number:06d}.parquet").write_bytes(b"1234")
    return [{"task": number, "pairs": task.pairs, "bytes": 4} for number, task in enumerate(tasks)]


def test_what_tasks_report_is_checked(tmp_path: Path) -> None:
    tasks = [Task(0, 0, 2, 5), Task(0, 2, 3, 1)]
    good = done(tasks, tmp_path)
    module._check(good, tasks, tmp_path)
    with pytest.raises(DataError, match="1 of 2 tasks"):
        module._check(good[:1], tasks, tmp_path)
    with pytest.raises(DataError, match="counts 4 pairs in task 0, not 5"):
        module._check([good[0] | {"pairs": 4}, good[1]], tasks, tmp_path)
    (tmp_path / "part-000001.parquet").unlink()
    with pytest.raises(UsageError, match=r"part-000001.*storage that the driver and all Spark workers share"):
        module._check(good, tasks, tmp_path)


def test_a_worker_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not see"):
        module._write_task(str(tmp_path), str(tmp_path), str(tmp_path / "elsewhere"), 0, Task(0, 0, 1, 1))


def batch(cells: list[tuple[int, int, int, int]]) -> pa.RecordBatch:
    columns = [pa.array(column, pa.int32()) for column in zip(*cells, strict=True)]
    return pa.RecordBatch.from_arrays(columns, names=GRAM.fieldNames())


def test_dense_sums_markets_by_weight() -> None:
    batches = [batch([(0, 0, 0, 3), (0, 0, 2, 1), (0, 1, 1, 4)]), batch([(1, 0, 2, 5), (1, 2, 2, 6)])]
    gram = dense_gram(batches, 3, np.array([1.0, 0.5]))
    np.testing.assert_array_equal(gram, [[3, 0, 0], [0, 4, 0], [3.5, 0, 3]])  # (0, 2): 1 + 5 / 2, in the lower half
    assert gram.flags.f_contiguous
    single = dense_gram(batches, 3, np.array([1.0, 0.5]), np.float32)
    assert single.dtype == np.float32
    np.testing.assert_array_equal(single, gram)


def test_a_cell_that_comes_twice_in_a_batch_counts_twice() -> None:
    assert dense_gram([batch([(0, 1, 1, 1), (0, 1, 1, 1)])], 2, np.ones(1))[1, 1] == 2


def histories(arrays: MarketArrays) -> list[list[int]]:
    return [history.tolist() for history in np.split(arrays.slots, arrays.indptr[1:-1])]


def test_cap_keeps_a_sample_of_long_histories() -> None:
    arrays = shop([[{0, 1, 2, 3, 4, 5}, {1, 2}, {0, 2, 4}]])
    capped, left_out = cap_histories(arrays, 3, seed=7)
    assert left_out == (1, 3)  # users, pairs
    first, *others = histories(capped)
    assert others == [[1, 2], [0, 2, 4]]
    assert len(first) == 3
    assert first == sorted(set(first))
    assert capped.slot_counts.tolist() == np.bincount(capped.slots, minlength=6).tolist()
    assert (capped.slots.dtype, capped.indptr.dtype) == (arrays.slots.dtype, arrays.indptr.dtype)
    assert histories(arrays)[0] == [0, 1, 2, 3, 4, 5]  # the original stays


def test_cap_is_the_same_by_seed_and_each_item_as_likely() -> None:
    arrays = shop([[set(range(8)) for _ in range(3000)]])
    capped, _ = cap_histories(arrays, 2, seed=7)
    assert histories(capped) == histories(cap_histories(arrays, 2, seed=7)[0])
    assert histories(capped) != histories(cap_histories(arrays, 2, seed=8)[0])
    expected: NDArray[np.float64] = np.full(8, 3000 * 2 / 8)
    chi_squared = ((capped.slot_counts - expected) ** 2 / expected).sum()
    assert chi_squared < 24.3  # 99.9 % of chi-squared with 7 degrees of freedom; more even than independent draws


def test_a_cap_above_all_changes_nothing() -> None:
    arrays = random_shop()
    capped, left_out = cap_histories(arrays, 10**6, seed=0)
    assert left_out == (0, 0)
    assert histories(capped) == histories(arrays)
    assert replace(capped, indptr=arrays.indptr, slots=arrays.slots, slot_counts=arrays.slot_counts) == arrays
