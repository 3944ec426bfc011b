"""MRR, NDCG and HR on the top k, from the rank of each user's one held-out item.

With one relevant item the ideal DCG is 1. A fractional rank r (ties) counts if r <= k, with 1/r and 1/log2(1+r).
Spark counts how many users have which rank, exactly; the metrics follow on the driver, from at most 2k values a group,
the same to the last bit under any partitioning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from m3rec_spark.errors import DataError

K = 10
ALL, MEAN = "all", "mean"  # over all users; over the markets' values
NORMAL_95 = 1.959963984540054
Row = dict[str, Any]  # of METRICS
Histogram = dict[float, int]  # rank -> users


def mrr(ranks: NDArray[np.float64], users: NDArray[np.int64] | None = None, k: int = K) -> float:
    """Mean reciprocal rank, 0 below the first k.

    Args:
        ranks: (U,) expected ranks, >= 1.
        users: (U,) how many users have each; None: one.
        k: cut-off.

    >>> mrr(np.array([1.0, 4.0, 11.0, 2.5]))  # (1 + 1/4 + 0 + 1/2.5) / 4
    0.4125
    """
    return _mean(_GAINS["mrr"](ranks), ranks, users, k)


def ndcg(ranks: NDArray[np.float64], users: NDArray[np.int64] | None = None, k: int = K) -> float:
    """Normalised discounted cumulative gain; arguments as in mrr.

    >>> ndcg(np.array([1.0, 3.0, 11.0, 12.0]))  # (1/log2(2) + 1/log2(4) + 0 + 0) / 4
    0.375
    """
    return _mean(_GAINS["ndcg"](ranks), ranks, users, k)


def hr(ranks: NDArray[np.float64], users: NDArray[np.int64] | None = None, k: int = K) -> float:
    """Hit rate: the share of users with rank <= k; arguments as in mrr.

    >>> hr(np.array([1.0, 10.0, 10.5]), users=np.array([2, 1, 1]))  # three of four
    0.75
    """
    return _mean(_GAINS["hr"](ranks), ranks, users, k)


_GAINS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "mrr": lambda ranks: 1.0 / ranks,
    "ndcg": lambda ranks: 1.0 / np.log2(1.0 + ranks),
    "hr": np.ones_like,
}
METRICS = {"mrr": "mrr", f"ndcg_{K}": "ndcg", f"hr_{K}": "hr"}  # name in METRICS -> gain


def metrics_by_market(ranks: DataFrame, market_ids: Mapping[int, str]) -> list[Row]:
    """RANKS -> rows of METRICS: per model, market and split (valid, test, all), among candidates and `full_`.

    Besides the columns of METRICS a row has `half_width`, of the value's 95% interval over users (normal; of a mean
    over markets: from those of the markets).

    Market "all" is over all users, "mean" the mean over the markets (n: how many). A group without users has no row.

    Args:
        ranks: any part of RANKS.
        market_ids: index -> id.

    Raises:
        DataError: a market has the id "all" or "mean".
    """
    taken = {ALL, MEAN} & set(market_ids.values())
    if taken:
        raise DataError(f"market id '{taken.pop()}' is a word of the report (all users, mean of markets): rename it")
    histograms: dict[tuple[str, str, str, str], Histogram] = {}
    for row in rank_counts(ranks).collect():
        for market in (market_ids[row["market"]], ALL):
            for split in (row["half"], "all"):
                counts = histograms.setdefault((row["model"], market, split, row["prefix"]), {})
                counts[row["rank"]] = counts.get(row["rank"], 0) + row["users"]
    rows = [row for group, counts in sorted(histograms.items()) for row in _metric_rows(*group, counts)]
    return rows + means_over_markets(rows)


def rank_counts(ranks: DataFrame) -> DataFrame:
    """RANKS -> (model, market, half, prefix "" or "full_", rank, users); every rank beyond K counts as infinity."""
    kinds = F.array(
        F.struct(F.lit("").alias("prefix"), F.col("rank").alias("rank")),
        F.struct(F.lit("full_").alias("prefix"), F.col("full_rank").alias("rank")),
    )
    top = F.when(F.col("kind.rank") <= K, F.col("kind.rank")).otherwise(F.lit(float("inf")))
    return (
        ranks.select("model", "market", "half", F.explode(kinds).alias("kind"))
        .groupBy("model", "market", "half", "kind.prefix", top.alias("rank"))
        .agg(F.count("*").alias("users"))
    )


def gains_of(gain: str, ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    """(U,) gains (mrr, ndcg or hr) of users with these expected ranks, 0 below the first K."""
    return np.where(ranks <= K, _GAINS[gain](ranks), 0.0)


def half_width(gain: str, ranks: NDArray[np.float64], users: NDArray[np.int64]) -> float:
    """Of the 95% interval of a metric: 1.96 standard errors of the mean over users.

    >>> round(half_width("hr", np.array([1.0, 20.0]), np.array([50, 50])), 4)  # 1.96 * 0.5 / sqrt(100)
    0.098
    """
    gains = gains_of(gain, ranks)
    variance = np.average((gains - np.average(gains, weights=users)) ** 2, weights=users)
    return float(NORMAL_95 * np.sqrt(variance / users.sum()))


def _mean(gain: NDArray[np.float64], ranks: NDArray[np.float64], users: NDArray[np.int64] | None, k: int) -> float:
    if len(ranks) == 0 or not (ranks >= 1).all():
        raise ValueError(f"ranks must be some numbers >= 1, got {len(ranks)}, the least {ranks.min(initial=np.inf)}")
    return float(np.average(np.where(ranks <= k, gain, 0.0), weights=users))


def _metric_rows(model: str, market: str, split: str, prefix: str, histogram: Histogram) -> list[Row]:
    ranks = np.array(sorted(histogram))
    users = np.array([histogram[rank] for rank in ranks.tolist()])
    return [
        _row(
            model,
            market,
            split,
            prefix + name,
            _mean(_GAINS[gain](ranks), ranks, users, K),
            int(users.sum()),
            half_width(gain, ranks, users),
        )
        for name, gain in METRICS.items()
    ]


def means_over_markets(rows: Sequence[Row]) -> list[Row]:
    """Rows of market "mean", n the number of markets, from the rows of the markets; those of "all" are passed over."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row["market"] != ALL:
            groups.setdefault((row["model"], row["split"], row["metric"]), []).append(row)
    means = []
    for (model, split, metric), group in groups.items():
        values, widths = (np.array([row[name] for row in group]) for name in ("value", "half_width"))
        mean, width = float(values.mean()), float(np.sqrt((widths**2).sum()) / len(group))
        means.append(_row(model, MEAN, split, metric, mean, len(group), width))
    return means


def _row(model: str, market: str, split: str, metric: str, value: float, n: int, width: float) -> Row:
    named = {"model": model, "market": market, "split": split, "metric": metric}
    return {**named, "value": value, "n": n, "half_width": width}
