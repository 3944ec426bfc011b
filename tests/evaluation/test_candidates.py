from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pyspark.sql import SparkSession
from scipy.stats import chisquare
from small_workspace import KEY, publish_random_shop, publish_shop

from m3rec_spark.data.arrays import open_arrays
from m3rec_spark.errors import CorruptTableError, DataError
from m3rec_spark.evaluation import candidates
from m3rec_spark.evaluation.candidates import draw_negatives, eligible_items, local_indices, publish_candidates
from m3rec_spark.evaluation.contract import require_same_contract, table_digest
from m3rec_spark.tables import Workspace


def keys(n: int) -> np.ndarray:
    return np.random.default_rng(3).integers(2**64, size=n, dtype=np.uint64)


def lists(offsets: np.ndarray, values: np.ndarray) -> list[list[int]]:
    return [values[a:b].tolist() for a, b in itertools.pairwise(offsets)]


@given(
    hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12)),
    st.integers(1, 14),
    st.integers(0, 2**64 - 1),
)
@settings(deadline=None)
def test_negatives_are_distinct_eligible_and_as_many_as_there_are(eligible: np.ndarray, n: int, key: int) -> None:
    items = np.arange(eligible.shape[1], dtype=np.int32) * 7  # column -> item
    drawn = lists(*draw_negatives(items, eligible, n, np.full(len(eligible), key, np.uint64)))
    for mask, negatives in zip(eligible, drawn, strict=True):
        assert set(negatives) <= set(items[mask].tolist())
        assert len(negatives) == min(n, mask.sum())
        assert negatives == sorted(set(negatives))


def test_every_subset_is_equally_likely() -> None:
    items, users = np.arange(8, dtype=np.int32), 14_000
    eligible = np.tile(items != 5, (users, 1))
    drawn = lists(*draw_negatives(items, eligible, 3, keys(users)))
    seen = Counter(map(tuple, drawn))
    assert len(seen) == 35  # 7 over 3; 400 users each
    assert chisquare(list(seen.values())).pvalue > 0.001


def test_sequential_keys_do_as_well() -> None:
    items = np.arange(50, dtype=np.int32)
    _, drawn = draw_negatives(items, np.ones((20_000, 50), bool), 1, np.arange(20_000, dtype=np.uint64))
    assert chisquare(np.bincount(drawn, minlength=50)).pvalue > 0.001


def test_a_draw_depends_on_key_and_item_alone() -> None:
    items, some = np.arange(100, dtype=np.int32), keys(20)
    everything = np.ones((20, 100), bool)
    many = lists(*draw_negatives(items, everything, 30, some))
    few = lists(*draw_negatives(items, everything, 10, some))
    assert all(set(a) < set(b) for a, b in zip(few, many, strict=True))
    assert lists(*draw_negatives(items, everything[:5], 30, some[5:10])) == many[5:10]
    half = lists(*draw_negatives(items[::2], everything[:, ::2], 30, some))  # the other items are gone
    assert all({i for i in a if i % 2 == 0} <= set(b) for a, b in zip(many, half, strict=True))


def test_eligible_by_hand(tmp_path: Path) -> None:
    train = [("M", "x", "a"), ("M", "x", "b"), ("M", "y", "c"), ("M", "y", "d"), ("N", "z", "e")]
    held = [("M", "x", "c", "test"), ("M", "y", "f", "test")]  # f: cold in M
    arrays = open_arrays(publish_shop(tmp_path / "w", train, held).folder("arrays"))
    users, positives = np.array([0, 1], np.int32), np.array([2, 4])  # M sells a b c d f
    excluded = eligible_items(arrays, 0, users, positives, "excluded")
    assert excluded.tolist() == [[False, False, False, True, False], [True, True, False, False, False]]
    included = eligible_items(arrays, 0, users, positives, "included")
    assert included.tolist() == [[True, True, False, True, False], [True, True, True, True, False]]
    assert local_indices(arrays, 0, np.array([5, 0], np.int32)).tolist() == [4, 0]
    for stranger in (4, 6):  # e, and an item that does not exist
        with pytest.raises(CorruptTableError, match="market 0 does not know"):
            local_indices(arrays, 0, np.array([0, stranger], np.int32))


def freeze(spark: SparkSession, workspace: Workspace, **settings: Any) -> tuple[list[dict], dict]:
    contract = publish_candidates(spark, workspace, KEY, **{"negatives": 6, "seen": "excluded", "seed": 1, **settings})
    rows = workspace.read_arrow("candidates").to_pylist()
    return sorted(rows, key=lambda row: (row["market"], row["user"])), contract


def test_frozen_lists_against_plain_sets(spark: SparkSession, tmp_path: Path) -> None:
    workspace = publish_random_shop(tmp_path / "w")
    pairs = workspace.read_arrow("interactions").to_pylist()
    train = {(p["market"], p["user"], p["item"]) for p in pairs if p["split"] == "train"}
    pool = {m: {i for n, _, i in train if n == m} for m in range(3)}
    held = {(p["market"], p["user"]): (p["item"], p["split"]) for p in pairs if p["split"] != "train"}
    shas = set()
    for seen in ("excluded", "included"):
        rows, contract = freeze(spark, workspace, seen=seen)
        assert {(r["market"], r["user"]): (r["positive"], r["half"]) for r in rows} == held
        for r in rows:
            own = {i for m, u, i in train if (m, u) == (r["market"], r["user"])} if seen == "excluded" else set()
            rest = pool[r["market"]] - own - {r["positive"]}
            assert set(r["negatives"]) <= rest
            assert len(r["negatives"]) == len(set(r["negatives"])) == min(6, len(rest))
            assert r["cold"] == (r["positive"] not in pool[r["market"]])
        assert contract["counts"]["positives"] == len(rows) == 55
        assert contract["counts"]["cold"] == sum(r["cold"] for r in rows) > 0
        assert contract["counts"]["valid"] == sum(r["half"] == "valid" for r in rows)
        shas.add(contract["sha256"])
        assert contract["name"] == {"excluded": "standard", "included": "paper-like"}[seen]
    assert len(shas) == 2


def test_the_same_on_any_partitioning(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = publish_random_shop(tmp_path / "w")
    expected = freeze(spark, workspace)  # one task; one file of each table
    for partitions, users_per_task, cells in ((3, 20, 100), (7, 4, 10)):
        monkeypatch.setattr(candidates, "_USERS_PER_TASK", users_per_task)
        monkeypatch.setattr(candidates, "_CELLS", cells)
        for name in ("interactions", "users"):
            shuffled = workspace.read(spark, name).repartition(partitions)
            workspace.write(shuffled, name, KEY)
        assert freeze(spark, workspace) == expected
    assert workspace.manifest("candidates").extra["contract"] == expected[1]  # type: ignore[union-attr]


def test_contract_covers_settings_ids_and_lists(spark: SparkSession, tmp_path: Path) -> None:
    workspace = publish_random_shop(tmp_path / "w")
    rows, contract = freeze(spark, workspace)
    other_rows, other = freeze(spark, workspace, seed=2)
    assert [r["positive"] for r in other_rows] == [r["positive"] for r in rows]
    assert other["candidates_sha256"] != contract["candidates_sha256"]
    shas = {contract["sha256"], other["sha256"]}
    shas.add(freeze(spark, workspace, negatives=5)[1]["sha256"])
    users = workspace.read(spark, "users").replace({"u7": "u07"}, subset=["user_id"])
    workspace.write(users, "users", KEY)
    shas.add(freeze(spark, workspace)[1]["sha256"])
    assert len(shas) == 4
    require_same_contract(contract, dict(contract))
    with pytest.raises(DataError, match=r"seed: 1 and 2"):
        require_same_contract(contract, other)


def test_table_digest_sees_every_cell_and_no_order(spark: SparkSession) -> None:
    rows = [("a", 1), ("b", 2), ("b", 2), ('"c', 3)]
    digest = table_digest(spark.createDataFrame(rows, "x string, y int"))
    assert digest == table_digest(spark.createDataFrame(rows[::-1], "x string, y int").repartition(3))
    for changed in (rows[:-1], rows[1:], [*rows[:-1], ("c", 3)], [("a", 2), ("b", 1), *rows[2:]]):
        assert table_digest(spark.createDataFrame(changed, "x string, y int")) != digest


def test_a_positive_without_rivals_is_left_out_and_said(
    spark: SparkSession, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # N sells item c only, and z has it: nothing is left to rank d against. In M, x has a; b is ranked against c.
    train = [("M", "x", "a"), ("M", "y", "b"), ("M", "y", "c"), ("N", "z", "c")]
    workspace = publish_shop(tmp_path / "w", train, [("M", "x", "b", "test"), ("N", "z", "d", "test")])
    contract = publish_candidates(spark, workspace, KEY, negatives=9, seen="excluded", seed=1)
    rows = workspace.read_arrow("candidates").to_pylist()
    assert [(row["market"], row["negatives"]) for row in rows] == [(0, [2])]
    assert contract["counts"]["positives"] == 1
    assert "1 held-out pairs have nothing to be ranked against" in caplog.text
