from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from pyspark.sql import SparkSession
from pyspark.sql import functions as F

from m3rec_spark.config import Config, load
from m3rec_spark.data import indexing
from m3rec_spark.data.arrays import open_arrays
from m3rec_spark.errors import DataError, UsageError
from m3rec_spark.schema import TABLES
from m3rec_spark.stages import prepare
from m3rec_spark.stages.context import Context
from m3rec_spark.tables import Workspace
from m3rec_spark.tracking.runs import Tracker

KEY = "prepare-key"


def run(config: Config, workspace: Workspace) -> dict[str, Any]:
    prepare.run(Context(config, workspace, Tracker(), KEY))
    found: dict[str, Any] = json.loads((workspace.root / prepare.REPORT).read_text(encoding="utf-8"))
    return found


def content(workspace: Workspace) -> dict[str, Any]:
    """Everything that prepare publishes, in the order in which it lies there, except of candidates."""
    tables: dict[str, Any] = {
        name: workspace.read_arrow(name).to_pydict()
        for name, table in TABLES.items()
        if table.stage == "prepare" and table.schema is not None
    }
    arrays = open_arrays(workspace.folder("arrays"))
    for name in ("candidates", "users"):  # their files may be cut anywhere
        tables[name] = sorted(zip(*tables[name].values(), strict=True))
    return tables | {"slots": arrays.slots.tolist(), "indptr": arrays.indptr.tolist()}


def shop() -> pa.Table:
    """Two markets of 40 users; the ids of the users are the same in both; ids that other readers would spoil."""
    rows = [
        (market, f"{user:03d}", f'"ü {(7 * user + 3 * n) % 30}"')
        for market in ("de", "fr")
        for user in range(40)
        for n in range(2 + user % 4)
    ]
    rows += rows[:5]
    rows.append(("lone", "user", "item"))  # one user, one item: trained on, but never evaluated
    return pa.table(dict(zip(("market", "user_id", "item_id"), zip(*rows, strict=True), strict=True)))


@pytest.fixture(scope="module")
def prepared(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Workspace, dict[str, Any]]:
    """The shop, from one CSV file."""
    folder = tmp_path_factory.mktemp("prepared")
    pa.csv.write_csv(shop(), folder / "shop.csv")
    config, workspace = load(None, ["source.format=csv", f"source.path={folder}/shop.csv"]), Workspace(folder / "out")
    return config, workspace, run(config, workspace)


def test_the_small_shop(prepared: tuple[Config, Workspace, dict[str, Any]]) -> None:
    _, workspace, report = prepared
    tables = content(workspace)
    users = set(zip(tables["markets"]["market_id"], tables["markets"]["users"], strict=True))
    assert users == {("de", 40), ("fr", 40), ("lone", 1)}
    assert tables["items"]["item_id"][0] == '"ü 0"'
    assert tables["users"][1] == (0, 1, "001")
    assert len(tables["candidates"]) == 80
    assert len(tables["feed"]["user"]) == len(shop()) - 5 - 80
    assert report["cleaning"]["de"]["duplicates"] == 5
    assert report["user_ids_in_several_markets"] == 40
    warnings = "\n".join(report["warnings"])
    for text in ("lone has one user only", "lone has one item only", "lone has no held-out", "40 user ids occur"):
        assert text in warnings
    assert report["contract"] == workspace.manifest("candidates").extra["contract"]  # type: ignore[union-attr]


@pytest.mark.parametrize("partitions", [3, 7])
def test_the_same_tables_from_any_partitions(
    tmp_path: Path, prepared: tuple[Config, Workspace, dict[str, Any]], partitions: int
) -> None:
    table = shop()
    for part in range(partitions):  # part p: rows p, p + partitions, ...
        (tmp_path / "source").mkdir(exist_ok=True)
        pq.write_table(table.take(list(range(part, len(table), partitions))), tmp_path / "source" / f"{part}.parquet")
    workspace = Workspace(tmp_path / "out")
    report = run(load(None, ["source.format=parquet", f"source.path={tmp_path / 'source'}"]), workspace)
    assert report == prepared[2]
    assert content(workspace) == content(prepared[1])


def test_a_failed_publish_leaves_the_old_tables(
    prepared: tuple[Config, Workspace, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, workspace, _ = prepared
    before = content(workspace), workspace.manifest("interactions")
    real = indexing.index_pairs

    def broken(*arguments: Any) -> Any:
        frame = real(*arguments)
        too_late = F.when(F.col("user") > 30, F.raise_error(F.lit("the disk is full")).cast("int"))
        return frame.withColumn("user", F.coalesce(too_late, "user"))

    monkeypatch.setattr(indexing, "index_pairs", broken)
    with pytest.raises(Exception, match="the disk is full"):
        run(config, workspace)
    assert (content(workspace), workspace.manifest("interactions")) == before
    assert len([path for path in (workspace.root / "interactions").iterdir() if path.is_dir()]) == 1


def test_bad_settings_and_sources(spark: SparkSession, tmp_path: Path) -> None:
    pq.write_table(shop(), tmp_path / "shop.parquet")
    here = ["source.format=parquet", f"source.path={tmp_path / 'shop.parquet'}"]
    for workspace, overrides, error, message in [
        (tmp_path, here, UsageError, "overlap"),
        (tmp_path / "w", [*here, "split.method=given"], UsageError, r"source\.holdout is absent"),
        (tmp_path / "w", [*here, "split.method=last"], UsageError, r"source\.columns\.timestamp"),
        (tmp_path / "w", [*here, "clean.min_item_users=1000"], DataError, "k-core of the source is empty"),
        (tmp_path / "w", [*here, "source.columns.item=itemid"], DataError, "Did you mean 'item_id'"),
    ]:
        with pytest.raises(error, match=message):
            run(load(None, overrides), Workspace(workspace))
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("market", ["all", "mean", "(none)"])
def test_a_market_named_like_a_row_of_the_reports_is_refused_at_once(
    spark: SparkSession, tmp_path: Path, market: str
) -> None:
    (tmp_path / "orders.csv").write_text(f"market,user_id,item_id\n{market},u,a\n{market},u,b\nde,v,a\nde,v,b\n")
    with pytest.raises(DataError, match="rename it"):
        run(
            load(None, ["source.format=csv", f"source.path={tmp_path / 'orders.csv'}"]),
            Workspace(tmp_path.parent / "x"),
        )


def test_the_digest_of_the_demo_is_that_of_its_settings() -> None:
    def digest(*overrides: str) -> str:
        return prepare.source_digest(load(None, overrides), lambda: pytest.fail("no Spark for that"))

    assert digest() == digest("train.epochs=3") != digest("demo.seed=8")


def test_table_1_of_the_paper(spark: SparkSession, tmp_path: Path, xmarket: Path) -> None:
    few = "candidates.negatives=9"  # of the frozen lists the table says nothing
    config = load(None, ["source.format=xmarket", f"source.path={xmarket}", "split.method=given", few])
    workspace = Workspace(tmp_path)
    report = run(config, workspace)
    rows = {row["market_id"]: row for row in report["table_1"]}
    expected = {
        "users": [7109, 2697, 3328, 5482, 6466],
        "items": [2198, 1357, 1245, 2917, 9762],
        "train_rows": [48_302, 19_615, 23_367, 41_226, 77_173],
        "rate": [75.97, 84.89, 89.23, 72.78, 27.42],
    }
    assert {name: [rows[f"M{m}"][name] for m in range(1, 6)] for name in expected} == expected
    for row in rows.values():  # one held-out pair per user; halves at random, as the paper's
        assert row["valid"] + row["test"] == row["users"]
        assert abs(row["valid"] - row["users"] / 2) < 5 * (row["users"] / 4) ** 0.5
    assert sum(row["train"] for row in rows.values()) == 208_910
    assert [report["cold"][f"M{m}"]["cold"] for m in range(1, 6)] == [25, 25, 21, 35, 222]
    assert workspace.manifest("feed").rows == 208_910  # type: ignore[union-attr]
    assert len(workspace.manifest("feed").files) == 20  # type: ignore[union-attr]
    assert workspace.manifest("candidates").rows == 25_082  # type: ignore[union-attr]
