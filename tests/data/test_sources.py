from __future__ import annotations

import datetime
import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession

from m3rec_spark.data import digests, sources
from m3rec_spark.data.clean import clean
from m3rec_spark.data.sources import Columns, Origin, Part
from m3rec_spark.errors import DataError, UsageError

COLUMNS = Columns("market", "user_id", "item_id")


def write(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return str(path)


def rows(spark: SparkSession, source: Origin) -> list[tuple[object, ...]]:
    return sorted(tuple(row) for row in sources.read(spark, source)[0].collect())


def no_spark() -> SparkSession:
    raise AssertionError("local files need no Spark")


def test_csv_keeps_ids_to_the_letter(spark: SparkSession, tmp_path: Path) -> None:
    text = '\ufeffmarket,user_id,item_id\nM1,007,"say ""hi"""\nM1,"a, b", x \nMÜ,你好,5" wide\nM1,u9\nM1,u8,i8,more\n'
    found = rows(spark, sources.origin("csv", COLUMNS, write(tmp_path / "with space.csv", text)))
    assert found == [
        ("M1", "007", 'say "hi"', False),  # quotes doubled inside quotes; the byte order mark is not in the header
        ("M1", "a, b", " x ", False),
        ("M1", "u8", "i8", True),  # a field too many
        ("M1", "u9", None, True),  # a field too few
        ("MÜ", "你好", '5" wide', False),
    ]


def test_one_tsv_per_market_with_rating_and_time(spark: SparkSession, tmp_path: Path) -> None:
    de = write(tmp_path / "de.tsv", "who\twhat\tstars\twhen\n01\ti1\t4.5\t17\n")
    fr = write(tmp_path / "fr.tsv", "when\twho\twhat\tstars\n18\t01\ti2\tnone\n")  # other order of columns
    source = sources.origin("tsv", Columns("market", "who", "what", "stars", "when"), markets={"fr": fr, "de": de})
    assert rows(spark, source) == [("de", "01", "i1", "4.5", "17", False), ("fr", "01", "i2", "none", "18", False)]


def test_parquet_and_tables(spark: SparkSession, tmp_path: Path) -> None:
    when = pa.array([datetime.datetime(1970, 1, 1, 0, 0, 1)], pa.timestamp("us", tz="UTC"))
    table = pa.table({"market": ["M1"], "user_id": pa.array([7], pa.int64()), "item_id": ["i"], "time": when})
    pq.write_table(table, tmp_path / "x.parquet")
    columns = Columns("market", "user_id", "item_id", timestamp="time")
    expected = [("M1", "7", "i", "1000000")]  # microseconds
    assert rows(spark, sources.origin("parquet", columns, str(tmp_path / "x.parquet"))) == expected
    spark.read.parquet(str(tmp_path / "x.parquet")).createOrReplaceTempView("shop_log")
    assert rows(spark, sources.origin("table", columns, "shop_log")) == expected


def test_ids_must_not_be_floats(spark: SparkSession, tmp_path: Path) -> None:
    pq.write_table(pa.table({"market": ["M"], "user_id": [7.0], "item_id": ["i"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"column 'user_id' of .* is double: ids must be"):
        sources.read(spark, sources.origin("parquet", COLUMNS, str(tmp_path / "x.parquet")))


def test_a_missing_column_names_the_nearest(spark: SparkSession, tmp_path: Path) -> None:
    path = write(tmp_path / "x.csv", "market,userId,item_id\nM,u,i\n")
    with pytest.raises(
        DataError, match=r"no column 'user_id'. Did you mean 'userId'\? It has: market, userId, item_id"
    ):
        sources.read(spark, sources.origin("csv", COLUMNS, path))


def test_what_cannot_be_read(spark: SparkSession, tmp_path: Path) -> None:
    text = write(tmp_path / "text.parquet", "not Parquet at all")
    empty = write(tmp_path / "empty.csv", "")
    (tmp_path / "folder").mkdir()
    for format, path, message in [
        ("csv", str(tmp_path / "no.csv"), "cannot read .*no.csv: Path does not exist"),
        ("parquet", text, "cannot read .*text.parquet: .*Could not read footer"),
        ("parquet", str(tmp_path / "folder"), "cannot read .*folder: Unable to infer schema"),
        ("csv", empty, "empty.csv is empty"),
        ("table", "no_such_table", "cannot read no_such_table: The table or view .* cannot be found"),
    ]:
        with pytest.raises(DataError, match=message):
            sources.read(spark, sources.origin(format, COLUMNS, path))


def test_a_file_that_breaks_off_is_told_when_it_is_read(spark: SparkSession, tmp_path: Path) -> None:
    lines = "".join(f"M,u{i},i{i * 7919 % 100_003}\n" for i in range(20_000))
    whole = gzip.compress(b"market,user_id,item_id\n" + lines.encode())
    (tmp_path / "x.csv.gz").write_bytes(whole[: len(whole) // 2])
    frame, _ = sources.read(spark, sources.origin("csv", COLUMNS, str(tmp_path / "x.csv.gz")))
    with pytest.raises(DataError, match=r"cannot read the source: .*x\.csv\.gz"):
        clean(frame, "the source")


def test_the_xmarket_layout(spark: SparkSession, tmp_path: Path) -> None:
    for place in sources.XMARKET.values():
        write(tmp_path / place / "train_5core.tsv", f"userId\titemId\trating\n{place}U1\tP1\t1.0\n")
        write(tmp_path / place / "valid_qrel.tsv", f"userId\titemId\trating\n{place}U1\tP2\t1\n")
    train, holdout = sources.read(spark, sources.xmarket(str(tmp_path), with_holdout=True))
    expected = [("M1", "s2U1"), ("M2", "t1U1"), ("M3", "s3U1"), ("M4", "t2U1"), ("M5", "s1U1")]
    assert sorted(tuple(row) for row in train.select("market_id", "user_id").collect()) == expected
    assert holdout is not None
    assert sorted(tuple(row) for row in holdout.select("market_id", "user_id").collect()) == expected
    assert sources.xmarket(str(tmp_path), with_holdout=False).holdout == ()


def test_the_demo_shop(spark: SparkSession) -> None:
    frame = sources.read_demo(spark, scale=0.02, groups=4, seed=1)
    assert frame.columns == ["market_id", "user_id", "item_id"]
    assert [row[0] for row in frame.select("market_id").distinct().orderBy("market_id").collect()] == list(
        sources.XMARKET
    )
    assert frame.select("market_id", "user_id").distinct().count() == 502  # 2% of the paper's, rounded by market


def test_settings_that_do_not_fit() -> None:
    for arguments, message in [
        ({}, "either source.path"),
        ({"path": "x", "markets": {"a": "y"}}, "either source.path"),
        (
            {"markets": {"fr": "x"}, "holdouts": {"fra": "y"}},
            "market 'fra' is not in source.markets. Did you mean 'fr'",
        ),
        ({"path": "x", "holdout": "y", "holdouts": {}, "columns": Columns(None, "u", "i")}, "source.columns.market"),
    ]:
        with pytest.raises(UsageError, match=message):
            sources.origin("csv", **({"columns": COLUMNS} | arguments))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"source\.path must name the folder"):
        sources.xmarket(None, with_holdout=True)


def test_the_digest_of_files_is_that_of_their_bytes(tmp_path: Path) -> None:
    def digest(**parts: str) -> str:
        found = sources.origin("csv", COLUMNS, markets={name: str(tmp_path / place) for name, place in parts.items()})
        return digests.digest_origin(found, no_spark)

    write(tmp_path / "a" / "part-0.csv", "1")
    write(tmp_path / "a" / "part-1.csv", "2")
    write(tmp_path / "b" / "renamed.csv", "2")
    write(tmp_path / "b" / "other.csv", "1")
    write(tmp_path / "b" / "_SUCCESS", "no data")
    write(tmp_path / "c" / "part-0.csv", "3")
    assert digest(m="a") == digest(m="b") != digest(m="c")
    assert digest(m="a", n="c") != digest(m="c", n="a")


def test_the_digest_of_a_table_does_not_know_the_order(spark: SparkSession) -> None:
    def digest(pairs: list[tuple[str, str]]) -> str:
        frame = spark.createDataFrame([("M", user, item) for user, item in pairs], ["market", "user_id", "item_id"])
        frame.createOrReplaceTempView("digested")
        return digests.digest_origin(sources.origin("table", COLUMNS, "digested"), lambda: spark)

    pairs = [("a", "x"), ("b", "y"), ("c", "z"), ("c", "z")]
    assert digest(pairs) == digest(pairs[::-1])
    assert len({digest(pairs), digest(pairs[:3]), digest([("a", "y"), ("b", "x"), ("c", "z"), ("c", "z")])}) == 3


def test_a_missing_source_has_no_digest(spark: SparkSession, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Path does not exist"):
        digests.digest_origin(sources.origin("csv", COLUMNS, str(tmp_path / "no.csv")), lambda: spark)


@pytest.mark.parametrize("path", ["data/x.csv", "data", "data/../data/x.csv", "file:{}/data", "data/*.csv", "link"])
def test_a_workspace_must_not_overlap_the_source(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "data" / "x.csv", "1")
    (tmp_path / "link").symlink_to(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    source = Origin("csv", COLUMNS, (Part("elsewhere.csv"), Part(path.format(tmp_path))))
    with pytest.raises(UsageError, match="overlap"):
        digests.refuse_workspace_in(source, tmp_path)
    digests.refuse_workspace_in(source, tmp_path / "workspace")
