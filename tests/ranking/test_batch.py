from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from small_workspace import publish_served

from m3rec_spark.ranking import batch as module
from m3rec_spark.ranking.batch import Work, Written, recommend_all, recommend_some
from m3rec_spark.ranking.bundle import Places, open_places
from m3rec_spark.ranking.pack import lay_out
from m3rec_spark.ranking.recommender import Request, reasons_as_json


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    root = tmp_path_factory.mktemp("batch")
    workspace = publish_served(root / "w")
    (root / "places").mkdir()
    return lay_out(workspace, root / "places")


def read(target: Path) -> pd.DataFrame:
    table = ds.dataset(target, format="parquet", partitioning="hive").to_table().to_pandas()
    return table.sort_values(["market", "user_id", "rank"]).reset_index(drop=True)


def expected(places: Places, k: int, reasons: bool = False) -> pd.DataFrame:
    """User by user, as the served model answers."""
    served, rows = open_places(places), []
    for market, name in enumerate(served.markets):
        first, last = (int(end) for end in served.arrays.user_offsets[market : market + 2])
        for user in served.users.part(first, last):
            answer = served.recommend([Request(name, user, k=k, explain=reasons)])[0]
            told = reasons_as_json(answer) if reasons else [None] * len(answer.items)
            for rank, (item, score, reason) in enumerate(zip(answer.items, answer.scores, told, strict=True), start=1):
                rows.append((user, rank, item, np.float32(score), reason, name))
    frame = pd.DataFrame(rows, columns=["user_id", "rank", "item_id", "score", "reasons", "market"])
    return frame.sort_values(["market", "user_id", "rank"]).reset_index(drop=True)


def assert_same(found: pd.DataFrame, wanted: pd.DataFrame) -> None:
    assert len(found) == len(wanted)
    for name in ("user_id", "rank", "item_id", "score"):
        assert found[name].tolist() == wanted[name].tolist(), name
    assert found["market"].tolist() == wanted["market"].tolist()


@pytest.mark.parametrize("tasks", [1, 3, 7])
def test_all_users_on_any_number_of_tasks(
    spark: SparkSession, places: Places, tmp_path: Path, tasks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", 8)
    monkeypatch.setattr(module, "_USERS_OF_A_TASK", -(-55 // tasks))
    written = recommend_all(spark, Work(places, str(tmp_path), 6), slots=0)
    assert_same(read(tmp_path), expected(places, 6))
    assert {market: counts.users for market, counts in written.items()} == {0: 13, 1: 40, 2: 2}
    assert sum(counts.rows for counts in written.values()) == len(expected(places, 6))
    assert len(list(tmp_path.rglob("*.parquet"))) >= tasks


def test_short_lists_are_counted(spark: SparkSession, places: Places, tmp_path: Path) -> None:
    written = recommend_all(spark, Work(places, str(tmp_path), 20), slots=2)
    lengths = read(tmp_path).groupby(["market", "user_id"]).size()
    assert sum(counts.short for counts in written.values()) == int((lengths < 20).sum()) > 0


def test_some_users(spark: SparkSession, places: Places, tmp_path: Path) -> None:
    rows = spark.createDataFrame([(row,) for row in (0, 12, 13, 30, 54)], "row long").repartitionByRange(3, "row")
    written = recommend_some(rows.sortWithinPartitions("row"), Work(places, str(tmp_path), 3))
    assert written == {0: Written(2, 6, 0), 1: Written(2, 6, 0), 2: Written(1, 3, 0)}
    served = open_places(places)
    whole = expected(places, 3)
    ids = {(served.markets[m], served.users[row]) for m, row in ((0, 0), (0, 12), (1, 13), (1, 30), (2, 54))}
    wanted = whole[[pair in ids for pair in zip(whole["market"], whole["user_id"], strict=True)]].reset_index(drop=True)
    assert_same(read(tmp_path), wanted)


def test_reasons_are_those_of_the_served_model(spark: SparkSession, places: Places, tmp_path: Path) -> None:
    recommend_all(spark, Work(places, str(tmp_path), 4, reasons=True), slots=2)
    found, wanted = read(tmp_path), expected(places, 4, reasons=True)
    assert [list(texts) for texts in found["reasons"]] == wanted["reasons"].tolist()


def test_files_are_whole_or_absent(spark: SparkSession, places: Places, tmp_path: Path) -> None:
    """A task that dies while it writes leaves no file under the name that counts."""
    broken = Places(**{**vars(places), "shoppers": places.shoppers, "model": str(tmp_path / "absent")})
    with pytest.raises(Exception, match="cannot be read"):
        recommend_all(spark, Work(broken, str(tmp_path / "out"), 4), slots=2)
    assert not [file for file in (tmp_path / "out").rglob("*") if file.is_file()]


def test_ids_are_plain_text_for_every_reader(spark: SparkSession, places: Places, tmp_path: Path) -> None:
    recommend_all(spark, Work(places, str(tmp_path), 2), slots=2)
    file = next(tmp_path.rglob("*.parquet"))
    assert [str(field.type) for field in pq.read_schema(file)][:4] == ["string", "int32", "string", "float"]
    assert spark.read.parquet(str(tmp_path)).count() == len(expected(places, 2))
