"""Tonight's lists: model -> recommendations, for all users of all markets or for a given list of them."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from m3rec_spark.config import digest
from m3rec_spark.data.arrays import MarketArrays, open_arrays
from m3rec_spark.errors import DataError, UsageError
from m3rec_spark.ranking.batch import Work, Written, recommend_all, recommend_some
from m3rec_spark.ranking.pack import lay_out
from m3rec_spark.stages.context import Context
from m3rec_spark.stages.machine import task_slots

log = logging.getLogger(__name__)

TABLE, TABLE_OF_LIST = "recommendations", "recommendations_of_list"  # all users; those of a list


def run(context: Context, users: str | None = None) -> dict[str, Any]:
    """Publishes the table `recommendations`, or `recommendations_of_list`, whole or not at all.

    Args:
        context: its key is that of the trained model.
        users: a CSV (with a header) or Parquet of `market` and `user_id`; None: all users.

    Returns:
        Users, rows and short lists by market id, and how many users of the list nobody knows.
    """
    workspace, settings = context.workspace, context.config.recommend
    arrays, spark = open_arrays(workspace.folder("arrays")), context.spark()
    key, facts = digest("recommend", context.key, settings, users), dict[str, Any]()
    names = workspace.read_arrow("markets").sort_by("market")["market_id"].to_pylist()
    with (
        workspace.scratch("recommend") as scratch,
        workspace.publishing(TABLE if users is None else TABLE_OF_LIST, key, extra=facts) as folder,
    ):
        work = Work(lay_out(workspace, scratch), str(folder), settings.k, settings.reasons)
        if users is None:
            written = recommend_all(spark, work, task_slots(spark))
        else:
            rows, facts["unknown_users"] = _rows_of(context, arrays, users)
            written = recommend_some(rows, work)
        facts["markets"] = {names[market]: vars(counts) for market, counts in sorted(written.items())}
    _tell(facts, written, settings.k)
    return facts


def _rows_of(context: Context, arrays: MarketArrays, path: str) -> tuple[DataFrame, int]:
    """The rows of the arrays for the users of a file, each once, in order; and how many are unknown.

    Raises:
        UsageError: the file cannot be read or lacks a column.
        DataError: nobody on the list is known.
    """
    spark, workspace = context.spark(), context.workspace
    if not Path(path).exists():
        raise UsageError(f"--users {path}: there is no such file")
    frame = spark.read.parquet(path) if Path(path).suffix == ".parquet" else spark.read.csv(path, header=True)
    missing = [name for name in ("market", "user_id") if name not in frame.columns]
    if missing:
        raise UsageError(
            f"--users {path} has no column {' and '.join(missing)} (it has {', '.join(frame.columns)}): "
            "name the columns market and user_id"
        )
    wanted = frame.select(F.col("market").cast("string").alias("market_id"), F.col("user_id").cast("string")).distinct()
    markets = F.broadcast(workspace.read(spark, "markets").select("market", "market_id"))
    known = workspace.read(spark, "users").join(markets, "market").join(wanted, ["market_id", "user_id"])
    offsets = F.array(*(F.lit(int(offset)) for offset in arrays.user_offsets[:-1]))
    rows = known.select((F.element_at(offsets, F.col("market") + 1) + F.col("user")).alias("row"))
    rows = rows.repartitionByRange(max(1, context.config.spark.shuffle_partitions), "row").sortWithinPartitions("row")
    total, found = wanted.count(), rows.count()
    if not found:
        raise DataError(f"none of the {total:,} users of {path} is known: check the ids and the markets")
    if total > found:
        log.warning("%d of %d users of %s are unknown to the model: no list for them", total - found, total, path)
    return rows, total - found


def _tell(facts: dict[str, Any], written: dict[int, Written], k: int) -> None:
    users, rows = (sum(getattr(counts, name) for counts in written.values()) for name in ("users", "rows"))
    log.info("recommendations: %d items for %d users of %d markets", rows, users, len(written))
    for market, counts in facts["markets"].items():
        if counts["short"]:
            log.warning(
                "market %s: %d of %d users get fewer than %d items: the market has no more that they have not bought",
                market, counts["short"], counts["users"], k,
            )  # fmt: skip
