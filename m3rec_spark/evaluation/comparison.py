"""Models side by side: means over seeds, paired tests, and gains by group, from the ranks of all users.

A user's gain under a model is the mean over its seeds. Spark joins the gains of two models by user and counts equal
differences, rounded to 1e-4: at most 20,001 numbers a market come to the driver, however many users there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from pyspark.sql import Column, DataFrame
from pyspark.sql import Row as SparkRow
from pyspark.sql import functions as F

from m3rec_spark.evaluation.metrics import ALL, MEAN, NORMAL_95, Row, means_over_markets, metrics_by_market
from m3rec_spark.evaluation.metrics import K as CUTOFF
from m3rec_spark.evaluation.significance import FEWEST, Users, Values, compare, holm, mean_over_markets

_SEED = "#"  # between a model's name and its seed in the column `model` of RANKS


def seeded_name(model: str, seed: int) -> str:
    """The name of a run, as its scorer has it."""
    return f"{model}{_SEED}{seed}"


def rows_by_seed(ranks: DataFrame, market_ids: Mapping[int, str], contract: str) -> list[Row]:
    """Rows of METRICS with the columns `seed` and `contract`, one half at a time.

    Market "mean" is over the markets with FEWEST users or more: a handful of users must not weigh as much as thousands.
    """
    found = [row for row in metrics_by_market(ranks, market_ids) if row["split"] != "all" and row["market"] != MEAN]
    rows = []
    for row in [*found, *means_over_markets([row for row in found if row["n"] >= FEWEST])]:
        model, _, seed = row["model"].rpartition(_SEED)
        rows.append({**row, "model": model, "seed": int(seed), "contract": contract})
    return rows


def over_seeds(rows: Iterable[Row]) -> list[Row]:
    """The mean of every figure over its seeds, `seeds` of them, with their standard deviation as `spread`."""
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("contract", "model", "market", "split", "metric"))
        groups.setdefault(key, []).append(row)
    means = []
    for group in groups.values():
        values = np.array([row["value"] for row in group])
        spread = float(values.std(ddof=1)) if len(values) > 1 else 0.0
        kept = {name: value for name, value in group[0].items() if name != "seed"}
        widths = float(np.mean([row["half_width"] for row in group]))
        means.append(
            {**kept, "value": float(values.mean()), "spread": spread, "seeds": len(group), "half_width": widths}
        )
    return means


def gain(metric: str, rank: Column) -> Column:
    """Of a user's rank, as in evaluation.metrics."""
    gains = {"mrr": 1 / rank, "ndcg_10": 1 / F.log2(1 + rank), "hr_10": F.lit(1.0)}
    return F.when(rank <= CUTOFF, gains[metric]).otherwise(0.0)


def user_gains(ranks: DataFrame, metric: str) -> DataFrame:
    """RANKS -> (model, market, user, gain): the mean over the model's seeds. metric: full_... is by the full rank."""
    model = F.regexp_replace("model", f"{_SEED}[0-9]+$", "").alias("model")
    gained = gain(metric.removeprefix("full_"), F.col("full_rank" if metric.startswith("full_") else "rank"))
    return ranks.groupBy(model, "market", "user").agg(F.avg(gained).alias("gain"))


def paired_tests(
    ranks: DataFrame, ours: str, others: Sequence[str], market_ids: Mapping[int, str], metric: str, seed: int
) -> list[dict[str, Any]]:
    """Ours against each of the others: by market, over all users, and in the mean over the markets.

    `p_holm` adjusts the t-tests of one other model over the markets; over all users and in the mean it is one test.

    Args:
        ranks: RANKS of one contract and one half, with the models named by `seeded_name`.
        ours: a model.
        others: models.
        market_ids: index -> id.
        metric: mrr, ndcg_10 or hr_10, or one of them among all items of the market, full_...
        seed: of the bootstrap.
    """
    gains = user_gains(ranks, metric)
    mine = gains.filter(F.col("model") == ours).select("market", "user", F.col("gain").alias("mine"))
    theirs = gains.filter(F.col("model").isin(list(others)))
    difference = F.round(F.col("mine") - F.col("gain"), 4).alias("difference")
    counted = theirs.join(mine, on=["market", "user"]).groupBy("model", "market", difference).count().collect()
    found = []
    for other in others:
        cells = {title: _differences(counted, other, {market}) for market, title in market_ids.items()}
        tests = {title: compare(*cell, seed) for title, cell in cells.items()}
        p_holm = holm([test.p_t for test in tests.values()])
        tests[ALL] = compare(*_differences(counted, other, set(market_ids)), seed)
        tests[MEAN] = mean_over_markets([cell for cell in cells.values() if cell[1].sum() >= FEWEST])
        p_holm += [tests[ALL].p_t, tests[MEAN].p_t]
        named = {"ours": ours, "other": other, "metric": metric}
        found += [
            {**named, "market": title, **vars(test), "p_holm": p}
            for (title, test), p in zip(tests.items(), p_holm, strict=True)
        ]
    return found


def _differences(counted: Sequence[SparkRow], other: str, markets: set[int]) -> tuple[Values, Users]:
    """Distinct differences to a model in some markets, and how many users have each."""
    cells = [row for row in counted if row["model"] == other and row["market"] in markets]
    values, where = np.unique([row["difference"] for row in cells], return_inverse=True)
    users = np.bincount(where, [row["count"] for row in cells], minlength=len(values)).astype(np.int64)
    return values, users


def runner_up(rows: Iterable[Row], ours: Sequence[str], metric: str, split: str) -> str | None:
    """The best other model by the mean over the markets; None where there is none."""
    means = {
        row["model"]: row["value"]
        for row in rows
        if (row["market"], row["metric"], row["split"]) == (MEAN, metric, split) and row["model"] not in ours
    }
    return max(means, key=lambda model: means[model]) if means else None


def gains_by_group(ranks: DataFrame, groups: DataFrame, market_ids: Mapping[int, str], metric: str) -> list[Row]:
    """Mean gain by model, market and group of users: (market, user, group) says to which one each belongs.

    half_width: of its 95% interval over users (normal); None of one user.
    """
    joined = user_gains(ranks, metric).join(groups, on=["market", "user"])
    width = NORMAL_95 * F.stddev_samp("gain") / F.sqrt(F.count("*"))
    figures = F.avg("gain").alias("value"), F.count("*").alias("n"), width.alias("half_width")
    counted = joined.groupBy("model", "market", "group").agg(*figures)
    rows = [{**row.asDict(), "market": market_ids[row["market"]], "metric": metric} for row in counted.collect()]
    return sorted(rows, key=lambda row: (row["model"], row["market"], str(row["group"])))
