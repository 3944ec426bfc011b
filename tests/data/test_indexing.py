from __future__ import annotations

import random

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from m3rec_spark.data import indexing
from m3rec_spark.tables import arrow_schema

Count = tuple[str, str, int, int]  # market id, item id, train pairs, held-out pairs
COUNTS: list[Count] = [
    ("de", "b", 3, 0),
    ("de", "a", 1, 2),
    ("fr", "b", 2, 1),
    ("fr", "c", 0, 2),  # cold in fr, known in at
    ("fr", "z", 0, 1),  # known nowhere
    ("at", "c", 4, 0),
]


def arrow(counts: list[Count]) -> pa.Table:
    columns = list(zip(*counts, strict=True))
    return pa.table(dict(zip(("market_id", "item_id", "train", "held"), columns, strict=True)))


def test_items_by_hand() -> None:
    index = indexing.index_items(arrow(COUNTS))
    assert index.market_ids == ["at", "de", "fr"]
    assert list(zip(*index.items.to_pydict().values(), strict=True)) == [
        (0, "a", 1),
        (1, "b", 2),
        (2, "c", 1),  # fr only has it in the hold-out
        (3, "z", 0),
    ]
    assert list(zip(*index.market_items.to_pydict().values(), strict=True)) == [
        (0, 2, 0, 4, 1),  # market, item, local, train_count, markets
        (1, 0, 0, 1, 1),
        (1, 1, 1, 3, 2),
        (2, 1, 0, 2, 2),
        (2, 2, 1, 0, 1),
        (2, 3, 2, 0, 0),
    ]
    assert index.cold == {
        "at": {"cold": 0, "unknown": 0},
        "de": {"cold": 0, "unknown": 0},
        "fr": {"cold": 3, "unknown": 1},
    }
    assert index.items.schema == arrow_schema("items")
    assert index.market_items.schema == arrow_schema("market_items")


def test_table_1_by_hand() -> None:
    split = {"train_rows": 9, "train": 8, "valid": 1, "test": 2}
    index = indexing.index_items(arrow(COUNTS))
    table = index.table_1({"de": split, "fr": split, "at": split, "left out": split}, {0: 5, 1: 6, 2: 7})
    assert list(zip(*table.to_pydict().values(), strict=True)) == [
        (0, "at", 5, 1, 9, 8, 1, 2, 0),  # nobody else has train pairs of c
        (1, "de", 6, 2, 9, 8, 1, 2, 1),
        (2, "fr", 7, 1, 9, 8, 1, 2, 1),  # its cold items do not count
    ]
    assert table.schema == arrow_schema("markets")


@given(st.permutations(COUNTS))
def test_the_order_of_the_counts_does_not_matter(counts: list[Count]) -> None:
    assert indexing.index_items(arrow(counts)).market_items == indexing.index_items(arrow(COUNTS)).market_items


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1), min_size=1, unique=True))
def test_ids_are_numbered_by_their_bytes(ids: list[str]) -> None:
    index = indexing.index_items(arrow([("m", item_id, 1, 0) for item_id in ids]))
    assert index.items["item_id"].to_pylist() == sorted(ids, key=str.encode)


def assigned(spark: SparkSession) -> DataFrame:
    rng = random.Random(5)
    triples = sorted({(rng.choice("XY"), f"ü{rng.randrange(30)}", f"i{rng.randrange(40)}") for _ in range(400)})
    split = ["train", "train", "train", "valid", None]
    rows = [(*triple, n, split[n % 5] if triple[1] != "ü7" else "train") for n, triple in enumerate(triples)]
    return spark.createDataFrame(rows, "market_id string, user_id string, item_id string, timestamp long, split string")


def test_indices_do_not_depend_on_partitions(spark: SparkSession) -> None:
    source = assigned(spark)
    rows = [row for row in source.collect() if row["split"]]
    market_ids, item_ids = ["X", "Y"], sorted({row["item_id"] for row in rows})
    known = {
        m: sorted({row["user_id"] for row in rows if (row["market_id"], row["split"]) == (m, "train")}) for m in "XY"
    }
    expected_users = [(m, u, user_id) for m, name in enumerate(market_ids) for u, user_id in enumerate(known[name])]
    expected = sorted(
        (
            market_ids.index(row["market_id"]),
            known[row["market_id"]].index(row["user_id"]),
            item_ids.index(row["item_id"]),
            row["timestamp"],
            row["split"],
        )
        for row in rows
    )
    for partitions in (1, 7):
        frame = source.orderBy(F.rand(partitions)).repartition(partitions)
        index = indexing.index_items(indexing.count_items(frame))
        assert index.market_ids == market_ids
        assert index.items["item_id"].to_pylist() == item_ids
        users = indexing.index_users(frame, market_ids)
        assert sorted(tuple(row) for row in users.collect()) == expected_users
        items = spark.createDataFrame(index.items)
        pairs = indexing.index_pairs(frame, market_ids, users, items)
        assert sorted(tuple(row) for row in pairs.collect()) == expected


def test_users_are_counted(spark: SparkSession) -> None:
    users = spark.createDataFrame([(0, 0, "a"), (0, 1, "b"), (1, 0, "a")], "market int, user int, user_id string")
    assert indexing.count_users(users) == ({0: 2, 1: 1}, 1)


def partitions(frame: DataFrame) -> list[list[tuple[int, ...]]]:
    """The rows of each partition, as they would be written to its file."""
    rows = frame.select(F.spark_partition_id().alias("file"), "*").collect()
    files = sorted({row["file"] for row in rows})
    return [[tuple(row)[1:] for row in rows if row["file"] == file] for file in files]


def test_the_feed_is_shuffled_and_the_same_on_any_partitions(
    spark: SparkSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "_FEED_ROWS", (40, 1000))
    rows = [(m, u, i, None, "train" if i else "valid") for m in range(2) for u in range(50) for i in range(5)]
    schema = "market int, user int, item int, timestamp long, split string"
    frame = spark.createDataFrame(rows, schema)
    first = partitions(indexing.feed_layout(frame, 400, seed=1))
    assert len(first) == 10  # 400 / 40: fewer than the 20 that more rows would give
    assert sorted(row for file in first for row in file) == sorted(row[:3] for row in rows if row[4] == "train")
    assert all(len({market for market, _, _ in file}) == 2 for file in first)
    assert all(file != sorted(file) for file in first)
    for parts in (3, 7):
        assert partitions(indexing.feed_layout(frame.repartition(parts), 400, seed=1)) == first
    assert partitions(indexing.feed_layout(frame, 400, seed=2)) != first


def test_interactions_are_sorted_and_laid_out_by_content(spark: SparkSession) -> None:
    rows = [(m, u, i, None, "train") for m in range(2) for u in range(20) for i in range(3)]
    frame = spark.createDataFrame(rows, "market int, user int, item int, timestamp long, split string")
    shuffled = frame.orderBy(F.rand(1)).repartition(7)
    assert partitions(indexing.file_layout(shuffled, len(rows))) == [rows]
