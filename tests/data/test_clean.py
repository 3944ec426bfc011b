from __future__ import annotations

import random
from collections import Counter

import pytest
from pyspark.sql import DataFrame, SparkSession

from m3rec_spark.data import clean as module
from m3rec_spark.data.clean import BAD, clean, k_core, total
from m3rec_spark.errors import DataError, UsageError

Row = tuple[str | None, ...]
DIRTY: list[Row] = [  # market, user, item, rating, timestamp, malformed
    ("M1", "u1", "i1", "5", "10", False),
    ("M1", "u1", "i1", "3.5", "30", False),  # a duplicate, later
    ("M1", "u1", "i1", " 4 ", "20", False),  # and another one
    ("M1", "u 1 ", "i1", "2e0", "2014-01-01 00:00:00", False),  # another user than u1, with white space
    ("M1", "u2", "i1", "1", "10", False),  # rated below 2
    ("M1", "", "i1", "5", "10", False),
    ("M1", None, "i1", "5", "10", False),
    ("M1", "u1", " \t\u2003", "5", "10", False),  # blank in Unicode too
    ("M1", "u1", "i2", "NaN", "10", False),
    ("M1", "u1", "i2", "Infinity", "10", False),
    ("M1", "u1", "i2", "-1", "10", False),
    ("M1", "u1", "i2", "four", "10", False),
    ("M1", "u1", "i2", None, "10", False),
    ("M1", "u1", "i2", "5", "soon", False),
    ("M1", "u1", "i2", "5", None, False),
    ("M1", "caf\ufffd", "i2", "5", "10", False),  # was not UTF-8
    ("M1", "u1", None, None, None, True),  # counted once, as malformed
    ("M2", "u1", "i1", "2", "1e3", False),
    (None, "u1", "i1", "5", "10", False),
    (" ", "u1", "i1", "5", "10", False),
]


def frame(spark: SparkSession, rows: list[Row]) -> DataFrame:
    schema = "market_id string, user_id string, item_id string, rating string, timestamp string, malformed boolean"
    return spark.createDataFrame(rows, schema)


def pairs(spark: SparkSession, rows: list[tuple[str, str, str]]) -> DataFrame:
    return spark.createDataFrame(rows, "market_id string, user_id string, item_id string")


@pytest.mark.parametrize("partitions", [1, 7])
def test_every_row_is_counted_once(spark: SparkSession, partitions: int) -> None:
    found = clean(frame(spark, DIRTY).repartition(partitions), "the source", min_rating=2.0)
    kept = sorted(
        tuple(row) for row in found.pairs.select("market_id", "user_id", "item_id", "timestamp", "rows").collect()
    )
    seconds = 1_388_534_400  # 2014-01-01, in whatever zone the session has
    assert kept[0][:4] == ("M1", "u 1 ", "i1", kept[0][3])
    assert abs(kept[0][3] / 1e6 - seconds) <= 14 * 3600
    assert kept[1:] == [("M1", "u1", "i1", 30, 3), ("M2", "u1", "i1", 1000, 1)]

    counted = {name: count for name, count in found.report["M1"].items() if count}
    assert counted == {
        "rows_in": 17, "malformed": 1, "no_user": 2, "no_item": 1, "undecodable": 1, "bad_rating": 5,
        "bad_timestamp": 2, "low_rating": 1, "duplicates": 2, "pairs_out": 2, "padded": 1,
    }  # fmt: skip
    assert found.report["(none)"]["no_market"] == 2
    sums = total(found.report)
    left_out = sum(sums[name] for name in (*BAD, "low_rating", "duplicates", "k_core"))
    assert sums["rows_in"] == len(DIRTY) == left_out + sums["pairs_out"]
    found.cached.unpersist()


def test_a_source_without_rating_and_time(spark: SparkSession) -> None:
    found = clean(pairs(spark, [("M", "u", "i"), ("M", "u", "i"), ("M", "u", "j")]), "the source")
    assert sorted(tuple(row) for row in found.pairs.select("item_id", "rows", "timestamp").collect()) == [
        ("i", 2, None),
        ("j", 1, None),
    ]


def test_bad_rows_can_be_an_error(spark: SparkSession) -> None:
    with pytest.raises(DataError, match=r"the source has 14 bad rows of 20 \(malformed 1, no_market 2, no_user 2,"):
        clean(frame(spark, DIRTY), "the source", bad_rows="error")
    good = [row for row in DIRTY if row[1] in ("u1", "u2") and row[2] == "i1" and row[0] == "M1"]
    assert total(clean(frame(spark, good), "the source", bad_rows="error").report)["pairs_out"] == 2


def test_nothing_left(spark: SparkSession) -> None:
    with pytest.raises(DataError, match="the source holds no rows"):
        clean(frame(spark, []), "the source")
    with pytest.raises(DataError, match=r"no usable row among 1 \(no_user 1\)"):
        clean(frame(spark, [DIRTY[5]]), "the source")
    with pytest.raises(DataError, match=r"clean.min_rating took all"):
        clean(frame(spark, [DIRTY[0]]), "the source", min_rating=6.0)
    with pytest.raises(DataError, match=r"the k-core .* is empty"):
        clean(frame(spark, [DIRTY[0]]), "the source", min_user_items=2)


def test_min_rating_needs_ratings(spark: SparkSession) -> None:
    with pytest.raises(UsageError, match=r"source.columns.rating"):
        clean(pairs(spark, [("M", "u", "i")]), "the source", min_rating=1.0)


def test_too_many_markets_are_a_wrong_column(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MARKETS", 3)
    assert len(clean(pairs(spark, [(f"M{i}", "u", "i") for i in range(3)]), "the source").report) == 3
    with pytest.raises(DataError, match=r"over 3 markets: is source.columns.market the right column"):
        clean(pairs(spark, [(f"M{i}", "u", "i") for i in range(4)]), "the source")


def reference_core(rows: set[tuple[str, str, str]], k_user: int, k_item: int) -> set[tuple[str, str, str]]:
    while True:
        users, items = Counter((m, u) for m, u, _ in rows), Counter(i for _, _, i in rows)
        kept = {(m, u, i) for m, u, i in rows if users[m, u] >= k_user and items[i] >= k_item}
        if kept == rows:
            return rows
        rows = kept


@pytest.mark.parametrize(("k_user", "k_item"), [(4, 5), (0, 5), (4, 0)])
def test_k_core_is_that_of_the_definition(spark: SparkSession, k_user: int, k_item: int) -> None:
    rng = random.Random(3)  # users named alike in both markets; items meet in both
    rows = {(rng.choice("AB"), f"u{rng.randrange(25)}", f"i{int(rng.random() ** 2 * 40)}") for _ in range(260)}
    expected = reference_core(rows, k_user, k_item)
    assert 0 < len(expected) < len(rows)
    found = k_core(pairs(spark, sorted(rows)), k_user, k_item)
    assert found.pairs.columns == ["market_id", "user_id", "item_id"]
    assert {tuple(row) for row in found.pairs.collect()} == expected
    assert {m: counts["pairs_out"] for m, counts in found.report.items()} == Counter(m for m, _, _ in expected)


def test_k_core_in_the_report(spark: SparkSession) -> None:
    # u1 has a, b; u2 has a, b, c; u3 of the other market has a only: goes, then all is stable at 2 by 2 but for c
    rows = [("M", "u1", "a"), ("M", "u1", "b"), ("M", "u2", "a"), ("M", "u2", "b"), ("M", "u2", "c"), ("N", "u3", "a")]
    found = clean(pairs(spark, rows), "the source", min_user_items=2, min_item_users=2)
    assert {m: (c["k_core"], c["pairs_out"]) for m, c in found.report.items()} == {"M": (1, 4), "N": (1, 0)}
    assert sorted(row["item_id"] for row in found.pairs.collect()) == ["a", "a", "b", "b"]
