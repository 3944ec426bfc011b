from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from m3rec_spark.errors import DataError
from m3rec_spark.evaluation.metrics import hr, metrics_by_market, mrr, ndcg
from m3rec_spark.schema import RANKS

KERNELS = [mrr, ndcg, hr]


def test_by_hand() -> None:
    ranks = np.array([1.0, 3.0, 10.0, 10.5])
    assert mrr(ranks) == pytest.approx((1 + 1 / 3 + 1 / 10) / 4)
    assert ndcg(ranks) == pytest.approx((1 + 1 / 2 + 1 / math.log2(11)) / 4)
    assert hr(ranks) == 3 / 4
    assert hr(ranks, k=2) == mrr(ranks, k=2) == 1 / 4


half_ranks = st.lists(st.integers(2, 60).map(lambda n: n / 2), min_size=1)


@given(half_ranks)
def test_counts_stand_for_users(ranks: list[float]) -> None:
    values = np.array(sorted(set(ranks)))
    users = np.array([ranks.count(value) for value in values])
    for metric in KERNELS:
        one_by_one = sum(metric(np.array([rank])) for rank in ranks) / len(ranks)
        assert metric(np.array(ranks)) == pytest.approx(one_by_one)
        assert metric(values, users) == pytest.approx(one_by_one)


@given(half_ranks)
def test_bounds(ranks: list[float]) -> None:
    assert 0 <= mrr(np.array(ranks)) <= ndcg(np.array(ranks)) <= hr(np.array(ranks)) <= 1


@pytest.mark.parametrize("ranks", [[], [0.5], [1.0, math.nan]])
def test_what_is_no_rank(ranks: list[float]) -> None:
    for metric in KERNELS:
        with pytest.raises(ValueError, match="ranks must be"):
            metric(np.array(ranks))


ROWS = [  # model, market, user, half, cold, rank, full rank
    ("ease", 0, 0, "valid", False, 1.0, 2.0),
    ("ease", 0, 1, "test", False, 2.0, 20.0),
    ("ease", 0, 2, "test", True, 11.0, 30.5),
    ("ease", 1, 0, "test", False, 1.5, 1.5),
    ("m3rec", 0, 1, "test", False, 1.0, 10.0),
]


def test_rows_by_hand(spark: SparkSession) -> None:
    rows = metrics_by_market(spark.createDataFrame(ROWS, RANKS), {0: "de", 1: "ü"})
    value = {(r["model"], r["market"], r["split"], r["metric"]): (r["value"], r["n"]) for r in rows}
    assert value["ease", "de", "valid", "mrr"] == (1, 1)
    assert value["ease", "de", "test", "mrr"] == (1 / 2 / 2, 2)
    assert value["ease", "de", "all", "mrr"] == (1.5 / 3, 3)
    assert value["ease", "de", "all", "hr_10"] == (pytest.approx(2 / 3), 3)
    assert value["ease", "ü", "test", "mrr"] == (pytest.approx(1 / 1.5), 1)
    assert value["ease", "ü", "test", "ndcg_10"] == (pytest.approx(1 / math.log2(2.5)), 1)
    assert value["ease", "all", "test", "mrr"] == (pytest.approx((1 / 2 + 0 + 1 / 1.5) / 3), 3)
    assert value["ease", "mean", "test", "mrr"] == (pytest.approx((1 / 4 + 1 / 1.5) / 2), 2)
    assert value["ease", "mean", "valid", "mrr"] == (1, 1)  # ü has no validation user
    assert value["ease", "de", "all", "full_mrr"] == (pytest.approx(1 / 2 / 3), 3)
    assert value["m3rec", "de", "test", "full_hr_10"] == (1, 1)
    assert ("ease", "ü", "valid", "mrr") not in value
    assert len(value) == len(rows) == 6 * ((3 + 2 + 3 + 3) + (2 + 2 + 2))  # splits of de, ü, all, mean; m3rec has no ü


def test_the_same_bits_on_any_partitioning(spark: SparkSession) -> None:
    rng = np.random.default_rng(0)
    rows = [
        ("m", int(i % 3), i, "test", False, float(rng.integers(2, 40)) / 2, float(rng.integers(2, 90)) / 2)
        for i in range(300)
    ]
    ranks, names = spark.createDataFrame(rows, RANKS), {0: "a", 1: "b", 2: "c"}
    expected = metrics_by_market(ranks.repartition(1), names)
    for partitions in (3, 7):
        assert metrics_by_market(ranks.repartition(partitions, "user"), names) == expected


def test_no_users_no_rows(spark: SparkSession) -> None:
    assert metrics_by_market(spark.createDataFrame(ROWS, RANKS).filter("user > 9"), {0: "de", 1: "ü"}) == []


def test_a_market_named_like_a_total(spark: SparkSession) -> None:
    with pytest.raises(DataError, match="'mean' is a word of the report"):
        metrics_by_market(spark.createDataFrame(ROWS, RANKS), {0: "de", 1: "mean"})
