"""Who helps whom on small shops: the gains against numpy's inverse and scipy's test on the list of all users."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from pyspark.sql import SparkSession
from scipy import stats
from small_workspace import KEY, Pair, publish, publish_random_shop, publish_shop

from m3rec_spark.config import load
from m3rec_spark.data.arrays import open_arrays
from m3rec_spark.evaluation.candidates import publish_candidates
from m3rec_spark.stages.compare_runs import bench_of
from m3rec_spark.stages.context import Context
from m3rec_spark.stages.transfer import audit, shared_items
from m3rec_spark.tables import Workspace
from m3rec_spark.tracking.runs import Tracker

LAMBDA = 0.7


def histories(workspace: Workspace) -> dict[int, np.ndarray]:
    """Market -> (users, all items) of zeros and ones."""
    items = workspace.read_arrow("items").num_rows
    users = {row["market"]: row["users"] for row in workspace.read_arrow("markets").to_pylist()}
    X = {market: np.zeros((count, items)) for market, count in users.items()}
    for row in workspace.read_arrow("interactions").to_pylist():
        if row["split"] == "train":
            X[row["market"]][row["user"], row["item"]] = 1
    return X


def publish_gram(workspace: Workspace) -> None:
    cells = []
    for market, X in histories(workspace).items():
        gram = np.triu(X.T @ X)
        cells += [(market, a, b, int(gram[a, b])) for a, b in zip(*map(np.ndarray.tolist, gram.nonzero()), strict=True)]
    publish(workspace, "gram", cells)


def context_of(workspace: Workspace) -> Context:
    config = load(None, [f"ease.lambda_f={LAMBDA}", "train.device=cpu"])
    return Context(config, workspace, Tracker(), KEY)


def plain_gains(workspace: Workspace, given: dict[int, float]) -> dict[tuple[int, int], float]:
    """(market, user) -> NDCG@10 under EASE of the weighted sum of the markets' Grams, by the textbook's inverse."""
    X = histories(workspace)
    gram = sum(weight * X[market].T @ X[market] for market, weight in given.items())
    inverse = np.linalg.inv(gram + LAMBDA * np.eye(len(gram)))
    B = np.eye(len(gram)) - inverse / np.diag(inverse)
    gains = {}
    for row in workspace.read_arrow("candidates").to_pylist():
        if row["half"] == "test":
            scores = (X[row["market"]][row["user"]] @ B).round(9)  # so that ties are ties
            own, others = scores[row["positive"]], scores[row["negatives"]]
            rank = 1 + (others > own).sum() + (others == own).sum() / 2
            gains[row["market"], row["user"]] = 1 / math.log2(1 + rank) if rank <= 10 else 0.0
    return gains


def plain_holm(p_values: list[float]) -> list[float]:
    """Each p-value is the largest, over those up to it, of p times how many are not below."""
    return [
        max(min(1, p * sum(other >= p for other in p_values)) for p in p_values if p <= wanted) for wanted in p_values
    ]


def test_audit_against_the_inverse(spark: SparkSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m3rec_spark.evaluation.significance.FEWEST", 2)
    workspace = publish_random_shop(tmp_path)
    publish_candidates(spark, workspace, KEY, negatives=12, seen="excluded", seed=1)
    publish_gram(workspace)
    context = context_of(workspace)
    ids = {row["market"]: row["market_id"] for row in workspace.read_arrow("markets").to_pylist()}

    everyone = plain_gains(workspace, dict.fromkeys(ids, 1.0))
    expected: dict[tuple[str, str], list[float]] = {}
    for market in ids:
        for helper in (None, *(other for other in ids if other != market)):
            left = {k: 1.0 for k in ids if k != helper} if helper is not None else {market: 1.0}
            gains = plain_gains(workspace, left)
            differences = [everyone[key] - gains[key] for key in everyone if key[0] == market]
            expected["others" if helper is None else ids[helper], ids[market]] = differences

    rows = audit(context, bench_of(context), tmp_path)
    assert {(row["helper"], row["market"]) for row in rows} == set(expected)
    assert len(rows) == 3 * 3
    by_market = defaultdict(list)
    for row in rows:
        differences = expected[row["helper"], row["market"]]
        assert row["users"] == len(differences)
        by_market[row["market"]].append(row)
        if differences:
            assert row["difference"] == pytest.approx(np.mean(differences), abs=1e-9)
        if len(set(differences)) > 1:
            assert row["low"] < row["difference"] < row["high"]
            assert row["p_t"] == pytest.approx(stats.ttest_1samp(differences, 0).pvalue, rel=1e-6)
    assert {len(expected["others", market]) for market in ("a", "b")} != {0}
    assert any(abs(row["difference"]) > 0.02 for row in rows)
    for found in by_market.values():
        assert found[0]["helper"] == "others"
        tested = [row for row in found if not math.isnan(row["p_t"])]
        assert [row["p_holm"] for row in tested] == pytest.approx(plain_holm([row["p_t"] for row in tested]))
    (kept,) = tmp_path.glob("transfer-*.json")
    kept.write_text(json.dumps(rows[:1]))
    assert audit(context, bench_of(context), tmp_path) == rows[:1]  # read, not solved again


def test_a_market_that_shares_nothing_helps_nobody(spark: SparkSession, tmp_path: Path) -> None:
    """Markets p and q share the items, z has its own; r has no test user."""
    rng = np.random.default_rng(2)
    train: list[Pair] = []
    held = []
    for market, prefix, half in (("p", "i", "test"), ("q", "i", "test"), ("z", "other ", "test"), ("r", "i", "valid")):
        for user in range(12):
            *bought, kept = (f"{prefix}{item}" for item in rng.permutation(8)[:4])
            train += [(market, f"u{user}", item) for item in bought]
            held.append((market, f"u{user}", kept, half))
    workspace = publish_shop(tmp_path, train, held)
    publish_candidates(spark, workspace, KEY, negatives=12, seen="excluded", seed=1)
    publish_gram(workspace)
    context = context_of(workspace)
    rows = {(row["helper"], row["market"]): row for row in audit(context, bench_of(context), tmp_path)}
    assert len(rows) == 4 * 4
    for pair in (("z", "p"), ("p", "z"), ("q", "z"), ("r", "z"), ("others", "z")):
        assert (rows[pair]["users"], rows[pair]["p_t"]) == (12, 1.0)
        assert rows[pair]["difference"] == 0.0
    assert rows["q", "p"]["difference"] != 0
    assert rows["p", "r"]["users"] == 0
    assert math.isnan(rows["p", "r"]["difference"])
    assert math.isnan(rows["p", "r"]["p_holm"])


def test_shared_items_by_hand(tmp_path: Path) -> None:
    train = [("m", "u", "a"), ("m", "u", "b"), ("m", "v", "b"), ("m", "v", "c"), ("n", "u", "b"), ("n", "u", "d")]
    train += [("o", "u", "e"), ("o", "v", "e"), ("o", "v", "a")]
    held = [("n", "u", "c", "test"), ("o", "v", "b", "valid")]  # c in n and b in o are cold: nobody bought them there
    workspace = publish_shop(tmp_path, train, held)
    shared = shared_items(open_arrays(workspace.folder("arrays")), {0: "m", 1: "n", 2: "o"})
    assert shared == {"markets": ["m", "n", "o"], "items": [[3, 1, 1], [1, 2, 0], [1, 0, 2]]}


def test_shared_items_against_sets(tmp_path: Path) -> None:
    workspace = publish_random_shop(tmp_path)
    sold = [set(np.flatnonzero(X.any(axis=0)).tolist()) for X in histories(workspace).values()]
    shared = shared_items(open_arrays(workspace.folder("arrays")), dict(enumerate("abc")))
    assert shared["items"] == [[len(one & other) for other in sold] for one in sold]
