"""Somebody else's scores: what is refused, and the ranks against loops over dictionaries."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark.sql import DataFrame, SparkSession
from small_workspace import publish_random_shop, publish_shop

from m3rec_spark.data.arrays import MarketArrays, open_arrays
from m3rec_spark.errors import DataError
from m3rec_spark.evaluation.candidates import Seen, freeze_candidates
from m3rec_spark.evaluation.score_table import COLUMNS, index_scores, read_scores, refuse_unscored_users, table_ranks
from m3rec_spark.schema import CANDIDATES, RANKS
from m3rec_spark.tables import Workspace

HEAD = ",".join(COLUMNS)
Scores = dict[tuple[str, str, str], float]


def written(tmp_path: Path, *lines: str, head: str = HEAD) -> str:
    file = tmp_path / "scores.csv"
    file.write_text("\n".join([head, *lines]) + "\n", encoding="utf-8")
    return str(file)


def test_csv_and_parquet_are_read_alike(spark: SparkSession, tmp_path: Path) -> None:
    rows = [("de", "007", "1", -0.5), ("ü", "7", "a b", 2e-3)]
    path = written(tmp_path, "-5e-1,1,007,de,x", "0.002,a b,7,ü,y", head="score,item_id,user_id,market,more")
    assert sorted(map(tuple, read_scores(spark, path).collect())) == rows
    table = {"market": ["m"], "user_id": [7], "item_id": [12], "score": np.array([1.5], np.float32)}
    pq.write_table(pa.table(table), tmp_path / "scores.parquet")
    assert read_scores(spark, str(tmp_path / "scores.parquet")).collect() == [("m", "7", "12", 1.5)]


@pytest.mark.parametrize(("name", "separator"), [("scores.tsv", "\t"), ("scores.csv.gz", ","), ("scores.tsv.gz", "\t")])
def test_tabs_and_packed_files(spark: SparkSession, tmp_path: Path, name: str, separator: str) -> None:
    lines = [COLUMNS, ("de", "u", "i", "0.5")]
    text = "".join(separator.join(line) + "\n" for line in lines).encode()
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    assert read_scores(spark, str(tmp_path / name)).collect() == [("de", "u", "i", 0.5)]


@pytest.mark.parametrize("name", ["scores.txt", "scores.parquet"])
def test_a_file_that_is_no_parquet(spark: SparkSession, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("market,user_id,item_id,score\nde,u,i,1\n", encoding="utf-8")
    with pytest.raises(
        DataError, match=rf"{name} cannot be read as Parquet: name Parquet, or a file that ends in \.csv"
    ):
        read_scores(spark, str(tmp_path / name))


def test_an_absent_file(spark: SparkSession, tmp_path: Path) -> None:
    path = str(tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match=rf"compare\.scores: no file or folder {re.escape(path)}: name a CSV or"):
        read_scores(spark, path)


def test_a_missing_column(spark: SparkSession, tmp_path: Path) -> None:
    path = written(tmp_path, "de,u,3", head="market,user,score")
    with pytest.raises(DataError, match=r"no column user_id, item_id; it needs .*item_id, score, got \['market', 'us"):
        read_scores(spark, path)


@pytest.mark.parametrize("score", ["NaN", "inf", "-Infinity", "good", ""])
def test_a_score_that_is_no_finite_number(spark: SparkSession, tmp_path: Path, score: str) -> None:
    path = written(tmp_path, "de,u 1,i 1,0.5", f"fr,u 2,i 7,{score}")
    with pytest.raises(DataError, match=r"1 scores are .* user u 2 in market fr for item i 7: leave .* out, or mend"):
        read_scores(spark, path)


def test_a_pair_with_two_scores(spark: SparkSession, tmp_path: Path) -> None:
    path = written(tmp_path, "de,u,i,0.5", "fr,u,i,0.5", "de,u,j,0.5", "fr,u,i,0.7")
    with pytest.raises(DataError, match="user u in market fr has item i 2 times: leave one row for a pair"):
        read_scores(spark, path)


def frames(spark: SparkSession, workspace: Workspace) -> dict[str, DataFrame]:
    names = ("markets", "users", "items", "market_items", "interactions")
    return {name: workspace.read(spark, name) for name in names}


def ids_of(workspace: Workspace) -> tuple[dict[int, str], dict[tuple[int, int], str], dict[int, str]]:
    markets, users, items = (workspace.read_arrow(name).to_pylist() for name in ("markets", "users", "items"))
    return (
        {row["market"]: row["market_id"] for row in markets},
        {(row["market"], row["user"]): row["user_id"] for row in users},
        {row["item"]: row["item_id"] for row in items},
    )


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, MarketArrays]:
    workspace = publish_random_shop(tmp_path_factory.mktemp("scores"))
    return workspace, open_arrays(workspace.folder("arrays"))


def random_scores(workspace: Workspace, arrays: MarketArrays) -> Scores:
    """Small whole numbers for two thirds of all pairs of a user and an item of his market: many ties."""
    rng, found = np.random.default_rng(3), {}
    markets, users, items = ids_of(workspace)
    for (market, _), user_id in users.items():
        own = arrays.slot_items[arrays.market_slots(market)]
        for item in own[rng.random(len(own)) < 0.67].tolist():
            found[markets[market], user_id, items[item]] = float(rng.integers(-2, 3))
    return found


def plain_ranks(
    workspace: Workspace, arrays: MarketArrays, rows: list[dict[str, Any]], scores: Scores, seen: Seen
) -> list[tuple]:
    """An item without a score has minus infinity, which is all there is to it."""
    markets, users, items = ids_of(workspace)
    pairs = {(r["market"], r["user"], r["item"]) for r in workspace.read_arrow("interactions").to_pylist()
             if r["split"] == "train"}  # fmt: skip
    ranks = []
    for row in rows:
        market, user, positive = row["market"], row["user"], row["positive"]
        slots = arrays.market_slots(market)
        pool = {item for m, _, item in pairs if m == market} - {positive}
        assert pool <= set(arrays.slot_items[slots].tolist())
        if seen == "excluded":
            pool -= {item for m, u, item in pairs if (m, u) == (market, user)}
        both = []
        for rivals in (row["negatives"], sorted(pool)):
            own, *others = (
                scores.get((markets[market], users[market, user], items[item]), -np.inf) for item in (positive, *rivals)
            )
            values = np.array(others)
            both.append(1 + (values > own).sum() + (values == own).sum() / 2)
        ranks.append(("theirs", market, user, row["half"], row["cold"], *both))
    return ranks


def as_table(spark: SparkSession, scores: Scores) -> DataFrame:
    return spark.createDataFrame([(*key, score) for key, score in scores.items()], ",".join(
        f"{name} {'double' if name == 'score' else 'string'}" for name in COLUMNS
    ))  # fmt: skip


def ranks_of(
    spark: SparkSession, workspace: Workspace, scores: Scores, candidates: DataFrame, seen: str
) -> tuple[DataFrame, int]:
    tables = frames(spark, workspace)
    return table_ranks(index_scores(as_table(spark, scores), tables), candidates, "theirs", tables, seen)


@pytest.mark.parametrize("seen", ["excluded", "included"])
def test_ranks_against_loops(spark: SparkSession, shop: tuple[Workspace, MarketArrays], seen: Seen) -> None:
    workspace, arrays = shop
    candidates = freeze_candidates(spark, workspace, workspace.folder("arrays"), 6, seen, 1)
    rows, scores = [row.asDict() for row in candidates.collect()], random_scores(workspace, arrays)
    markets, users, items = ids_of(workspace)
    given = {**scores, ("elsewhere", "u0", "i 3"): 9.0, ("b", "nobody", "i 3"): 9.0, ("b", "u1", "no item"): 9.0}
    ranks, blank = ranks_of(spark, workspace, given, candidates, seen)
    assert [(field.name, field.dataType) for field in ranks.schema] == [(f.name, f.dataType) for f in RANKS]
    expected = plain_ranks(workspace, arrays, rows, scores, seen)
    assert len(expected) == 55
    assert sorted(map(tuple, ranks.collect())) == sorted(expected)

    listed = [(row, item) for row in rows for item in (row["positive"], *row["negatives"])]
    keys = [(markets[r["market"]], users[r["market"], r["user"]], items[item]) for r, item in listed]
    assert blank == sum(key not in scores for key in keys) > 100
    unscored = [r for (r, item), key in zip(listed, keys, strict=True) if item == r["positive"] and key not in scores]
    assert len(unscored) > 5  # the shop has what is to be tested: such positives, ties, and a cold one
    assert any(row[5] % 1 for row in expected)
    assert any(row["cold"] for row in rows)


def test_ranks_by_hand(spark: SparkSession, tmp_path: Path) -> None:
    """Market m sells a to f. User u bought a, g holds out f (never sold to another: cold); ranks by hand."""
    train = [("m", "u", "a"), ("m", "v", "b"), ("m", "v", "c"), ("m", "v", "d"), ("m", "w", "e")]
    held = [("m", "u", "b", "test"), ("m", "w", "f", "test")]
    workspace = publish_shop(tmp_path, train, held)
    a, b, c, d, e, f = range(6)
    u, w = 0, 2
    lists = [(0, u, b, "test", False, [c, d, e]), (0, w, f, "test", True, [a, b])]
    candidates = spark.createDataFrame(lists, CANDIDATES)
    # u: a 9, b and c 1, d and e without; w: a 5 and no other, so that f is level with b (and c, d of all items)
    scores = {("m", "u", "a"): 9.0, ("m", "u", "b"): 1.0, ("m", "u", "c"): 1.0, ("m", "w", "a"): 5.0}
    for seen, full_u, full_w in (
        ("excluded", 1 + 1 / 2, 1 + 1 + 3 / 2),  # u against c d e, w against a and b c d
        ("included", 1 + 1 + 1 / 2, 1 + 1 + 4 / 2),  # a too, above; e too, level
    ):
        ranks, blank = ranks_of(spark, workspace, scores, candidates, seen)
        found = {row["user"]: (row["cold"], row["rank"], row["full_rank"]) for row in ranks.collect()}
        assert found == {u: (False, 1 + 1 / 2, full_u), w: (True, 1 + 1 + 1 / 2, full_w)}
        assert blank == 2 + 2  # d and e of u; b and the positive of w


def test_only_the_positive_has_a_score(spark: SparkSession, tmp_path: Path) -> None:
    workspace = publish_shop(tmp_path, [("m", "u", "a"), ("m", "v", "b"), ("m", "v", "c")], [("m", "u", "b", "test")])
    candidates = spark.createDataFrame([(0, 0, 1, "test", False, [2])], CANDIDATES)
    ranks, blank = ranks_of(spark, workspace, {("m", "u", "b"): -3.0}, candidates, "excluded")
    assert [(row["rank"], row["full_rank"]) for row in ranks.collect()] == [(1.0, 1.0)]
    assert blank == 1


def test_a_user_without_any_score(spark: SparkSession, shop: tuple[Workspace, MarketArrays]) -> None:
    workspace, arrays = shop
    candidates = freeze_candidates(spark, workspace, workspace.folder("arrays"), 6, "excluded", 1)
    scores = {key: score for key, score in random_scores(workspace, arrays).items() if key[:2] != ("b", "u17")}
    scores["a", "u17", "i 15"] = scores["b", "u17", "unheard of"] = 1.0  # another market's, another item's: no help
    tables = frames(spark, workspace)
    scored = index_scores(as_table(spark, scores), tables)
    with pytest.raises(DataError, match=r"'theirs': 1 of 55 users .* none, as user u17 in market b: score every user"):
        refuse_unscored_users(scored, candidates, "theirs", tables)
    markets, users, _ = ids_of(workspace)
    ((market, user),) = [key for key, name in users.items() if (markets[key[0]], name) == ("b", "u17")]
    refuse_unscored_users(scored, candidates.filter(f"market != {market} OR user != {user}"), "theirs", tables)
