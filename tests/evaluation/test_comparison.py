"""Means over seeds, paired tests against scipy's on all users, gains by group."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pyspark.sql import DataFrame, SparkSession
from scipy import stats

from m3rec_spark.evaluation.comparison import (
    gains_by_group,
    over_seeds,
    paired_tests,
    rows_by_seed,
    runner_up,
    seeded_name,
    user_gains,
)
from m3rec_spark.evaluation.significance import holm
from m3rec_spark.schema import RANKS

MARKETS = {0: "de", 1: "ü"}


def table(spark: SparkSession, *rows: tuple[str, int, int, float]) -> DataFrame:
    """RANKS of the test half from (model, market, user, rank); the full rank is 20 lower."""
    return spark.createDataFrame([(m, k, u, "test", False, rank, rank + 20) for m, k, u, rank in rows], RANKS)


def test_a_few_users_are_no_part_of_the_mean(spark: SparkSession) -> None:
    many = [("a#7", 0, user, 2.0) for user in range(10)]
    rows = rows_by_seed(table(spark, *many, *(("a#7", 1, user, 1.0) for user in range(9))), MARKETS, "standard")
    found = {row["market"]: (row["value"], row["n"]) for row in rows if row["metric"] == "mrr"}
    assert found == {"de": (0.5, 10), "ü": (1.0, 9), "all": (pytest.approx(14 / 19), 19), "mean": (0.5, 1)}


def test_rows_by_seed(spark: SparkSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("m3rec_spark.evaluation.comparison.FEWEST", 1)
    ranks = table(spark, ("a#b#7", 0, 0, 2.0), ("a#b#12", 0, 0, 4.0), (seeded_name("c", 7), 1, 0, 1.0))
    rows = rows_by_seed(ranks, MARKETS, "standard")
    assert {row["contract"] for row in rows} == {"standard"}
    found = {
        (row["model"], row["seed"], row["market"]): row["value"]
        for row in rows
        if (row["metric"], row["split"]) == ("mrr", "test")
    }
    one = {("a#b", 7): 1 / 2, ("a#b", 12): 1 / 4}
    expected = {(*key, market): value for key, value in one.items() for market in ("de", "all", "mean")}
    assert found == {**expected, ("c", 7, "ü"): 1.0, ("c", 7, "all"): 1.0, ("c", 7, "mean"): 1.0}


def row(value: float, seed: int, width: float = 0.0, **more: Any) -> dict[str, Any]:
    named = {"contract": "s", "model": "a", "market": "de", "split": "test", "metric": "mrr", "n": 9}
    return {**named, "value": value, "seed": seed, "half_width": width, **more}


def test_over_seeds() -> None:
    rows = [row(0.1, 1, 0.02), row(0.7, 9, market="ü"), row(0.4, 2, 0.04), row(0.2, 1, contract="p"), row(0.1, 3, 0.03)]
    means = over_seeds(rows)
    assert [(m["contract"], m["market"], m["seeds"]) for m in means] == [("s", "de", 3), ("s", "ü", 1), ("p", "de", 1)]
    three, one, _ = means
    assert three["value"] == pytest.approx(0.2)
    assert three["spread"] == pytest.approx(math.sqrt((0.01 + 0.04 + 0.01) / 2))  # off by -0.1, 0.2, -0.1; n - 1
    assert three["half_width"] == pytest.approx(0.03)
    assert (one["value"], one["spread"]) == (0.7, 0.0)
    assert set(three) == {*rows[0], "spread", "seeds"} - {"seed"}


def test_gains_of_a_user_are_means_over_seeds(spark: SparkSession) -> None:
    ranks = table(spark, ("a#1", 0, 5, 1.0), ("a#22", 0, 5, 10.5), ("a#1", 0, 6, 2.5), ("b#c#1", 1, 5, 10.0))
    hand = {
        "mrr": {("a", 0, 5): (1 + 0) / 2, ("a", 0, 6): 1 / 2.5, ("b#c", 1, 5): 1 / 10},
        "ndcg_10": {("a", 0, 5): (1 + 0) / 2, ("a", 0, 6): 1 / math.log2(3.5), ("b#c", 1, 5): 1 / math.log2(11)},
        "hr_10": {("a", 0, 5): (1 + 0) / 2, ("a", 0, 6): 1.0, ("b#c", 1, 5): 1.0},
    }
    for metric, expected in hand.items():
        found = {(r["model"], r["market"], r["user"]): r["gain"] for r in user_gains(ranks, metric).collect()}
        assert found == pytest.approx(expected)


def random_ranks(users: dict[int, int], seeds: dict[str, int]) -> list[tuple[str, int, int, float]]:
    rng = np.random.default_rng(11)
    return [
        (seeded_name(model, 40 + seed), market, user, float(rng.integers(2, 2 * width)) / 2)
        for model, width in (("ours", 14), ("near", 16), ("far", 40))
        for seed in range(seeds[model])
        for market, count in users.items()
        for user in range(count)
    ]


@pytest.mark.parametrize("metric", ["mrr", "ndcg_10", "hr_10", "full_ndcg_10"])
def test_paired_tests_are_those_of_all_users(spark: SparkSession, metric: str) -> None:
    rows = random_ranks({0: 70, 1: 45}, {"ours": 3, "near": 2, "far": 1})
    discounted = lambda r: 1 / math.log2(1 + r)  # noqa: E731
    one = {"mrr": lambda r: 1 / r, "hr_10": lambda r: 1.0}.get(metric, discounted)
    higher = 20 if metric.startswith("full_") else 0  # by which `table` has the full rank lower
    gains: dict[tuple[str, int, int], list[float]] = {}
    for model, market, user, rank in rows:
        gains.setdefault((model.split("#")[0], market, user), []).append(one(rank) if rank <= 10 else 0.0)
    mean = {key: sum(values) / len(values) for key, values in gains.items()}

    ranks = table(spark, *((model, market, user, rank - higher) for model, market, user, rank in rows))
    tests = paired_tests(ranks, "ours", ["far", "near"], MARKETS, metric, seed=5)
    assert [(t["other"], t["market"]) for t in tests] == [
        (other, market) for other in ("far", "near") for market in ("de", "ü", "all", "mean")
    ]
    for test in tests:
        if test["market"] == "mean":
            continue
        members = [
            value - mean[(test["other"], market, user)]
            for (model, market, user), value in mean.items()
            if model == "ours" and test["market"] in ("all", MARKETS[market])
        ]
        rounded = np.round(members, 4)
        assert (test["ours"], test["metric"], test["users"]) == ("ours", metric, len(members))
        assert test["difference"] == pytest.approx(np.mean(members), abs=5e-5)
        assert test["low"] < test["difference"] < test["high"]
        assert test["p_t"] == pytest.approx(stats.ttest_1samp(rounded, 0).pvalue, rel=1e-6)
        assert test["p_t"] == pytest.approx(stats.ttest_1samp(members, 0).pvalue, rel=0.02)
        wilcoxon = stats.wilcoxon(rounded, zero_method="wilcox", correction=False, method="approx").pvalue
        assert test["p_wilcoxon"] == pytest.approx(wilcoxon, rel=1e-6)


def test_holm_is_over_the_markets_of_one_other_model(spark: SparkSession) -> None:
    rows = random_ranks({0: 70, 1: 45}, {"ours": 1, "near": 1, "far": 1})
    tests = paired_tests(table(spark, *rows), "ours", ["near", "far"], MARKETS, "mrr", seed=5)
    assert len(tests) == 8
    for first in (0, 4):
        de, ü, over_all, mean = tests[first : first + 4]
        low, high = sorted((de, ü), key=lambda test: test["p_t"])
        assert low["p_holm"] == pytest.approx(min(1, 2 * low["p_t"]))
        assert high["p_holm"] == pytest.approx(max(low["p_holm"], high["p_t"]))
        assert [de["p_holm"], ü["p_holm"]] == holm([de["p_t"], ü["p_t"]])
        assert over_all["p_holm"] == over_all["p_t"]
        assert mean["difference"] == pytest.approx((de["difference"] + ü["difference"]) / 2)
        assert (mean["users"], mean["p_holm"]) == (70 + 45, mean["p_t"])


def test_a_market_without_users_and_one_with_equal_ranks(spark: SparkSession) -> None:
    rows = [(model, 0, user, 2.0) for model in ("ours#1", "other#1") for user in range(12)]
    de, ü, over_all, mean = paired_tests(table(spark, *rows), "ours", ["other"], MARKETS, "mrr", seed=0)
    assert (de["users"], de["difference"], de["p_t"], de["p_wilcoxon"], de["p_holm"]) == (12, 0.0, 1.0, 1.0, 1.0)
    assert ü["users"] == 0
    assert math.isnan(ü["p_t"])
    assert math.isnan(ü["p_holm"])
    assert (over_all["users"], over_all["p_holm"]) == (12, 1.0)
    assert (mean["users"], mean["difference"], mean["p_holm"]) == (12, 0.0, 1.0)  # of the one that has users


def test_only_users_of_both_models_are_compared(spark: SparkSession) -> None:
    ranks = table(spark, ("ours#1", 0, 0, 1.0), ("ours#1", 0, 1, 1.0), ("other#1", 0, 1, 2.0), ("other#1", 1, 0, 1.0))
    tests = paired_tests(ranks, "ours", ["other"], MARKETS, "mrr", seed=0)
    assert [(test["users"], test["market"]) for test in tests] == [(1, "de"), (0, "ü"), (1, "all"), (0, "mean")]
    assert tests[0]["difference"] == 0.5


def test_runner_up() -> None:
    def mean(model: str, value: float, **more: Any) -> dict[str, Any]:
        return row(value, 1, **{"model": model, "market": "mean", "metric": "ndcg_10", **more})

    rows = [
        mean("m3rec", 0.9), mean("m3rec_without_both", 0.8), mean("ease", 0.5), mean("slim", 0.6),
        mean("neumf", 0.7, split="valid"), mean("star", 0.7, market="de"), mean("mmoe", 0.7, metric="full_ndcg_10"),
    ]  # fmt: skip
    assert runner_up(rows, ["m3rec", "m3rec_without_both"], "ndcg_10", "test") == "slim"
    assert runner_up(rows, ["m3rec", "m3rec_without_both"], "ndcg_10", "valid") == "neumf"
    assert runner_up(rows[:2], ["m3rec", "m3rec_without_both"], "ndcg_10", "test") is None


def test_gains_by_group(spark: SparkSession) -> None:
    ranks = table(
        spark,
        ("a#1", 0, 0, 1.0), ("a#2", 0, 0, 2.0), ("a#1", 0, 1, 4.0), ("a#2", 0, 1, 30.0), ("a#1", 0, 2, 5.0),
        ("a#2", 0, 2, 5.0), ("a#1", 1, 0, 1.0), ("a#2", 1, 0, 1.0), ("b#1", 0, 0, 10.0),
    )  # fmt: skip
    groups = spark.createDataFrame(
        [(0, 0, "few"), (0, 1, "few"), (0, 2, "many"), (1, 0, "many"), (1, 9, "few")],
        "market int, user int, group string",
    )
    rows = gains_by_group(ranks, groups, MARKETS, "mrr")
    assert [tuple(r[name] for name in ("model", "market", "group", "n", "metric")) for r in rows] == [
        ("a", "de", "few", 2, "mrr"), ("a", "de", "many", 1, "mrr"), ("a", "ü", "many", 1, "mrr"),
        ("b", "de", "few", 1, "mrr"),
    ]  # fmt: skip
    hand = [((1 + 1 / 2) / 2 + (1 / 4 + 0) / 2) / 2, 1 / 5, 1.0, 1 / 10]
    assert [r["value"] for r in rows] == pytest.approx(hand)
    spread = abs((1 + 1 / 2) / 2 - (1 / 4 + 0) / 2) / math.sqrt(2)  # of the two users of a, de, few
    assert [r["half_width"] for r in rows] == [pytest.approx(1.959964 * spread / math.sqrt(2)), None, None, None]
