from __future__ import annotations

import pytest
from pyspark.sql import DataFrame, SparkSession

from m3rec_spark.data import split
from m3rec_spark.errors import DataError, UsageError

Triple = tuple[str, str, str]


def frame(spark: SparkSession, rows: list[Triple], times: list[int] | None = None) -> DataFrame:
    """Distinct pairs; every third of them stands for two rows of the source."""
    values = [(*row, times[n] if times else None, 1 + (n % 3 == 0)) for n, row in enumerate(rows)]
    return spark.createDataFrame(values, "market_id string, user_id string, item_id string, timestamp long, rows long")


def shop(users: int) -> list[Triple]:
    return [(m, f"u{u}", f"i{(7 * u + 3 * n) % 50}") for m in "AB" for u in range(users) for n in range(1 + u % 4)]


def splits(assigned: DataFrame) -> dict[Triple, str | None]:
    rows = assigned.select("market_id", "user_id", "item_id", "split").collect()
    assert len({tuple(row)[:3] for row in rows}) == len(rows)
    return {(row[0], row[1], row[2]): row[3] for row in rows}


def held(found: dict[Triple, str | None]) -> set[Triple]:
    return {pair for pair, name in found.items() if name in ("valid", "test")}


def test_the_last_pair_is_held_out(spark: SparkSession) -> None:
    rows = [("A", "u", "i1"), ("A", "u", "i2"), ("A", "v", "i1"), ("A", "v", "i3"), ("A", "v", "i2"), ("B", "u", "i1")]
    found = split.assign(split.hold_last(frame(spark, rows, times=[9, 5, 7, 7, 7, 1])), seed=1)
    # u of A: the later one; v: of three at one time the greatest id; u of B is another user, with one item only
    assert held(splits(found)) == {("A", "u", "i1"), ("A", "v", "i3")}
    report = split.count_splits(found)
    assert {name: count for name, count in report["B"].items() if count} == {
        "train_rows": 1,
        "train": 1,
        "kept_in_train": 1,
    }
    assert report["A"]["train"] == 3
    assert report["A"]["train_rows"] == 3  # i1 of u, and i3 of v, stood for two rows but are held out
    assert report["A"]["valid"] + report["A"]["test"] == 2


def test_the_random_pair_depends_on_ids_and_seed_alone(spark: SparkSession) -> None:
    rows = shop(60)
    first = splits(split.assign(split.hold_random(frame(spark, rows), seed=3), seed=3))
    for partitions in (3, 7):
        again = frame(spark, rows[::-1]).repartition(partitions)
        assert splits(split.assign(split.hold_random(again, seed=3), seed=3)) == first
    other = splits(split.assign(split.hold_random(frame(spark, rows), seed=4), seed=4))
    assert held(other) != held(first)
    users = [(m, f"u{u}") for m in "AB" for u in range(60) if u % 4]  # those with several items
    assert sorted((m, u) for m, u, _ in held(first)) == sorted(users)
    assert [pair for pair, name in first.items() if name is None] == []


def test_every_place_of_a_history_is_drawn(spark: SparkSession) -> None:
    rows = [("A", f"u{u}", f"i{n}") for u in range(300) for n in range(3)]
    drawn = held(splits(split.assign(split.hold_random(frame(spark, rows), seed=0), seed=0)))
    counts = [sum(item == f"i{n}" for _, _, item in drawn) for n in range(3)]
    assert sum(counts) == 300
    assert all(abs(count - 100) < 5 * (300 * 2 / 9) ** 0.5 for count in counts)  # five sigma


def test_users_are_halved_by_a_stable_hash(spark: SparkSession) -> None:
    rows = [(m, f"u{u}", f"i{n}") for m in "AB" for u in range(300) for n in range(2)]
    found = splits(split.assign(split.hold_random(frame(spark, rows), seed=5), seed=5))
    half = {(m, u): found[m, u, i] for m, u, i in held(found)}
    valid = sum(name == "valid" for name in half.values())
    assert len(half) == 600
    assert abs(valid - 300) < 5 * 150**0.5
    alike = sum(half["A", f"u{u}"] == half["B", f"u{u}"] for u in range(300))  # the market is part of the hash
    assert abs(alike - 150) < 5 * 75**0.5
    alone = [row for row in rows if row[1] == "u7"]  # the others do not matter
    again = splits(split.assign(split.hold_random(frame(spark, alone), seed=5), seed=5))
    assert {pair: found[pair] for pair in again} == again


def test_a_given_hold_out(spark: SparkSession) -> None:
    source = [("A", "u", "i1"), ("A", "u", "i2"), ("A", "u", "i3"), ("A", "v", "i1"), ("A", "w", "i2")]
    given = [
        ("A", "u", "i1"),  # in the source too: leaves train, where it stood for two rows
        ("A", "w", "i2"),  # all that w has: stays in train
        ("A", "v", "i9"),  # an item that nobody has
        ("A", "x", "i1"),  # a user without history
        ("C", "u", "i1"),  # a market without train pairs
    ]
    assigned = split.assign(split.hold_given(frame(spark, source), frame(spark, given)), seed=1)
    found = splits(assigned)
    assert held(found) == {("A", "u", "i1"), ("A", "v", "i9")}
    assert {pair for pair, name in found.items() if name == "train"} == {
        ("A", "u", "i2"),
        ("A", "u", "i3"),
        ("A", "v", "i1"),
        ("A", "w", "i2"),
    }
    report = split.count_splits(assigned)
    halves = {name: report["A"].pop(name) for name in ("valid", "test")}
    assert sum(halves.values()) == 2
    assert report["A"] == {"train_rows": 5, "train": 4, "held_from_train": 1, "kept_in_train": 1, "no_history": 1}
    assert report["C"]["no_history"] == 1
    assert report["C"]["train"] == 0


def test_nothing_to_evaluate(spark: SparkSession) -> None:
    lone = frame(spark, [("A", "u", "i1"), ("A", "v", "i2")])
    with pytest.raises(DataError, match="nothing can be evaluated"):
        split.count_splits(split.assign(split.hold_random(lone, seed=1), seed=1))


def test_methods_need_what_they_need(spark: SparkSession) -> None:
    pairs = frame(spark, [("A", "u", "i1")])
    with pytest.raises(UsageError, match=r"source\.holdout is absent"):
        split.mark("given", pairs, None, seed=1, has_timestamp=True)
    with pytest.raises(UsageError, match=r"split\.method is random, and source\.holdout is set"):
        split.mark("random", pairs, pairs, seed=1, has_timestamp=True)
    with pytest.raises(UsageError, match=r"source\.columns\.timestamp"):
        split.mark("last", pairs, None, seed=1, has_timestamp=False)
