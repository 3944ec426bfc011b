"""Which pair of a user is held out, and which users judge the validation half or the test half.

Three ways to mark the held-out pairs, one rule after that: a user is evaluated only if another pair of his is left to
know him by. Else all his pairs stay in train, and a given hold-out pair of his is left out (counted).
What is drawn depends on the ids and the seed, never on order or partitioning.
"""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from m3rec_spark.data.clean import PAIR, Counts
from m3rec_spark.errors import DataError, UsageError

_USER = ("market_id", "user_id")


def hold_last(pairs: DataFrame) -> DataFrame:
    """Marks the latest pair of each user; of several at one time the one with the greatest item id.

    Args:
        pairs: market_id, user_id, item_id, timestamp, rows; distinct.

    Returns:
        The pairs with `in_train` (the source has the pair, not only the hold-out) and `held`.
    """
    latest = Window.partitionBy(*_USER).orderBy(F.desc("timestamp"), F.desc("item_id"))
    return pairs.select("*", F.lit(True).alias("in_train"), (F.row_number().over(latest) == 1).alias("held"))


def hold_random(pairs: DataFrame, seed: int) -> DataFrame:
    """Marks one pair of each user, the one with the least hash of (seed, market, user, item id). See hold_last."""
    drawn = Window.partitionBy(*_USER).orderBy(F.xxhash64(F.lit(seed), *PAIR), "item_id")
    return pairs.select("*", F.lit(True).alias("in_train"), (F.row_number().over(drawn) == 1).alias("held"))


def hold_given(pairs: DataFrame, holdout: DataFrame) -> DataFrame:
    """Marks the pairs of a given hold-out; one that is also in the source is thereby taken out of train. See hold_last.

    Args:
        pairs: distinct pairs of the source.
        holdout: distinct held-out pairs, same columns.
    """
    both = pairs.select("*", F.lit(True).alias("in_train"), F.lit(False).alias("held")).unionByName(
        holdout.select("*", F.lit(False).alias("in_train"), F.lit(True).alias("held"))
    )
    return both.groupBy(*PAIR).agg(
        F.max("timestamp").alias("timestamp"),
        F.sum(F.when(F.col("in_train"), F.col("rows")).otherwise(0)).alias("rows"),
        F.max("in_train").alias("in_train"),
        F.max("held").alias("held"),
    )


def assign(marked: DataFrame, seed: int) -> DataFrame:
    """Adds `split`: train, valid, test, or null for a held-out pair of a user without history.

    A user's half is a hash of (seed, market_id, user_id): the same in every run and for every model.
    """
    history = F.count(F.when(F.col("in_train") & ~F.col("held"), 1)).over(Window.partitionBy(*_USER))
    half = F.when(F.xxhash64(F.lit(seed), *_USER).bitwiseAND(1) == 0, "valid").otherwise("test")
    split = F.when(F.col("held") & (history > 0), half).when(F.col("in_train"), "train")
    return marked.withColumn("split", split)


def count_splits(assigned: DataFrame) -> Counts:
    """What became of the pairs of an assigned frame, per market.

    `train_rows` (rows of the source behind the train pairs), `train`, `valid`, `test` (pairs);
    `held_from_train`: held-out pairs that the source has too, so taken out of train;
    `kept_in_train`: pairs marked to be held out that stayed, being all their user has;
    `no_history`: given held-out pairs left out because their user has no train pair.

    Raises:
        DataError: nothing can be evaluated.
    """
    split, held, in_train = F.col("split"), F.col("held"), F.col("in_train")
    is_train = F.coalesce(split == "train", F.lit(False))
    wanted = {
        "train": is_train,
        "valid": split == "valid",
        "test": split == "test",
        "held_from_train": held & in_train & ~is_train,
        "kept_in_train": held & is_train,
        "no_history": split.isNull(),
    }
    rows = F.coalesce(F.sum(F.when(is_train, F.col("rows"))), F.lit(0)).alias("train_rows")
    counts = assigned.groupBy("market_id").agg(rows, *(F.count_if(rule).alias(name) for name, rule in wanted.items()))
    report = {row["market_id"]: {name: row[name] for name in ("train_rows", *wanted)} for row in counts.collect()}
    if not any(counts["valid"] + counts["test"] for counts in report.values()):
        raise DataError(
            "nothing can be evaluated: no user has a train pair besides a held-out one. "
            "Users need two items at least, and the hold-out must be of the same users as the source"
        )
    return dict(sorted(report.items()))


def mark(method: str, pairs: DataFrame, holdout: DataFrame | None, seed: int, has_timestamp: bool) -> DataFrame:
    """hold_given, hold_last or hold_random, by name.

    Raises:
        UsageError: the method lacks what it needs.
    """
    if (method == "given") != (holdout is not None):
        raise UsageError(
            f"split.method is {method}, and source.holdout is {'absent' if holdout is None else 'set'}: "
            "a hold-out (source.holdout or source.holdouts) and split.method=given go together"
        )
    if holdout is not None:
        return hold_given(pairs, holdout)
    if method == "last" and not has_timestamp:
        raise UsageError("split.method last needs source.columns.timestamp, the name of the time column")
    return hold_last(pairs) if method == "last" else hold_random(pairs, seed)
