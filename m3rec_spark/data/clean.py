"""Leaves out what cannot be used, merges duplicates, cuts to the k-core; counts every row that goes, by market.

Ids are kept to the letter: nothing is stripped or folded, so that what is recommended can be looked up in the shop's
own tables. Ids with white space around them are therefore only counted (`padded`). A user is (market, user_id).
One pass over the source and one shuffle; the k-core one more pass over the pairs per round.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import pyarrow.compute as pc
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from m3rec_spark.data.sources import from_arrow, readable
from m3rec_spark.errors import DataError, UsageError

Counts = dict[str, dict[str, int]]  # market -> what -> rows

BAD = ("malformed", "no_market", "no_user", "no_item", "undecodable", "bad_rating", "bad_timestamp")
NO_MARKET = "(none)"
MAX_MARKETS = 1000
PAIR = ("market_id", "user_id", "item_id")
_COUNTED = ("rows_in", *BAD, "low_rating", "duplicates", "k_core", "pairs_out", "padded")
_IDS = {"no_market": "market_id", "no_user": "user_id", "no_item": "item_id"}


@dataclass(frozen=True)
class Cleaned:
    """pairs: distinct market_id, user_id, item_id with timestamp (the latest) and rows (how many there were).

    report: per market `rows_in` = every reason in BAD + `low_rating` + `duplicates` + `k_core` + `pairs_out`; and
    `padded`, rows kept whose ids have white space around them.
    """

    pairs: DataFrame
    report: Counts
    cached: DataFrame
    """What is persisted for the pairs: unpersist it when they are no longer needed."""


def clean(
    source: DataFrame,
    what: str,
    bad_rows: Literal["drop", "error"] = "drop",
    min_rating: float | None = None,
    min_user_items: int = 0,
    min_item_users: int = 0,
) -> Cleaned:
    """The usable pairs of a frame from `data.sources`.

    Args:
        source: as `sources.read` gives it.
        what: names the source in errors, as "the source".
        bad_rows: error: refuse the source if it has a row with one of the reasons in BAD.
        min_rating: keep rows rated at least this.
        min_user_items: k-core: items of a user in his market.
        min_item_users: k-core: users of an item over all markets.

    Raises:
        DataError: nothing is left, a bad row under "error", over 1000 markets, or an unreadable file.
    """
    tally = _tally(source, min_rating).persist()
    with readable(what):
        report = _count(tally, what)
    _refuse(report, what, bad_rows)
    pairs = tally.filter(F.col("reason").isNull()).drop("reason")
    if max(min_user_items, min_item_users) > 1:
        core = k_core(pairs, min_user_items, min_item_users)
        tally.unpersist()
        if not core.report:
            raise DataError(
                f"the k-core of {what} is empty: lower clean.min_user_items ({min_user_items}) "
                f"or clean.min_item_users ({min_item_users})"
            )
        return Cleaned(core.pairs, _with_core(report, core.report), core.cached)
    return Cleaned(pairs, report, tally)


def k_core(pairs: DataFrame, min_user_items: int, min_item_users: int) -> Cleaned:
    """The largest set of pairs in which every user and every item has enough of the other.

    The report holds `pairs_out` per market. Rounds: users by a window over each history, items by counts on the driver.
    """
    user = Window.partitionBy("market_id", "user_id")
    previous = None
    while True:
        enough = pairs.withColumn("n", F.count("*").over(user)).filter(F.col("n") >= min_user_items).drop("n").persist()
        counts = enough.groupBy("market_id", "item_id").agg(F.count("*").alias("pairs")).toArrow()
        if previous is not None:
            previous.unpersist()
        items = counts.group_by("item_id").aggregate([("pairs", "sum")])
        rare = items.filter(pc.less(items["pairs_sum"], min_item_users)).select(["item_id"])
        if rare.num_rows == 0:
            kept = counts.group_by("market_id").aggregate([("pairs", "sum")]).to_pylist()
            return Cleaned(enough, {row["market_id"]: {"pairs_out": row["pairs_sum"]} for row in kept}, enough)
        rare_frame = F.broadcast(from_arrow(pairs.sparkSession, rare))
        pairs = enough.join(rare_frame, "item_id", "left_anti").select(*enough.columns)
        previous = enough


def total(report: Counts) -> dict[str, int]:
    """The report's counts over all markets."""
    names: Iterable[str] = dict.fromkeys(name for counts in report.values() for name in counts)
    return {name: sum(counts.get(name, 0) for counts in report.values()) for name in names}


def _tally(source: DataFrame, min_rating: float | None) -> DataFrame:
    """Distinct (market, user, item, reason), with how many rows there were; a row left out loses user and item."""
    reason = _reason(source.columns, min_rating)
    usable = F.col("reason").isNull()
    timestamp = _number(F.col("timestamp")) if "timestamp" in source.columns else F.lit(None).cast("long")
    rows = source.withColumn("reason", reason).select(
        F.when(~_blank("market_id"), F.col("market_id")).alias("market_id"),
        F.when(usable, F.col("user_id")).alias("user_id"),
        F.when(usable, F.col("item_id")).alias("item_id"),
        "reason",
        timestamp.alias("timestamp"),
    )
    return rows.groupBy(*PAIR, "reason").agg(F.max("timestamp").alias("timestamp"), F.count("*").alias("rows"))


def _reason(columns: list[str], min_rating: float | None) -> Column:
    """Why a row is left out (the first that applies), or null."""
    rules: list[tuple[str, Column]] = []
    if "malformed" in columns:
        rules.append(("malformed", F.col("malformed")))
    rules += [(reason, _blank(name)) for reason, name in _IDS.items()]
    undecoded = [F.contains(F.col(name), F.lit("\ufffd")) for name in PAIR]  # two such ids may have been different
    rules.append(("undecodable", undecoded[0] | undecoded[1] | undecoded[2]))
    if "rating" in columns:
        rating = F.col("rating").try_cast("double")  # NaN is above every number
        rules.append(("bad_rating", rating.isNull() | F.isnan(rating) | (rating < 0) | (rating == float("inf"))))
    if "timestamp" in columns:
        rules.append(("bad_timestamp", _number(F.col("timestamp")).isNull()))
    if min_rating is not None:
        if "rating" not in columns:
            raise UsageError("clean.min_rating needs source.columns.rating, the name of the rating column")
        rules.append(("low_rating", rating < min_rating))
    return F.coalesce(*(F.when(applies, F.lit(name)) for name, applies in rules))


def _blank(name: str) -> Column:
    return F.col(name).isNull() | ~F.col(name).rlike(r"[^\s\p{Z}]")


def _number(timestamp: Column) -> Column:
    """A number as it is (cut to whole), a date or time in microseconds since 1970; null if it is neither."""
    number = F.coalesce(timestamp.try_cast("long"), timestamp.try_cast("double").try_cast("long"))
    return F.coalesce(number, F.unix_micros(timestamp.try_cast("timestamp")))


def _count(tally: DataFrame, what: str) -> Counts:
    padded = F.lit(False)
    for name in PAIR:
        padded = padded | F.col(name).rlike(r"^\s|\s$")
    counts = tally.groupBy("market_id", "reason").agg(
        F.sum("rows").alias("rows"), F.count("*").alias("pairs"), F.sum(F.when(padded, F.col("rows"))).alias("padded")
    )
    limit = MAX_MARKETS * (len(BAD) + 2)
    found = counts.limit(limit + 1).collect()
    if len(found) > limit or len({row["market_id"] for row in found}) > MAX_MARKETS:
        raise DataError(f"{what} has over {MAX_MARKETS} markets: is source.columns.market the right column?")
    report: Counts = {}
    for row in sorted(found, key=lambda row: row["market_id"] or ""):
        counted = report.setdefault(row["market_id"] or NO_MARKET, dict.fromkeys(_COUNTED, 0))
        counted["rows_in"] += row["rows"]
        if row["reason"] is not None:
            counted[row["reason"]] += row["rows"]
        else:
            counted["duplicates"], counted["pairs_out"] = row["rows"] - row["pairs"], row["pairs"]
            counted["padded"] = row["padded"] or 0
    return report


def _with_core(report: Counts, core: Counts) -> Counts:
    result = {}
    for market, counts in report.items():
        out = core.get(market, {}).get("pairs_out", 0)
        result[market] = counts | {"k_core": counts["pairs_out"] - out, "pairs_out": out}
    return result


def _refuse(report: Counts, what: str, bad_rows: str) -> None:
    counts = total(report)
    bad = {name: counts[name] for name in BAD if counts.get(name)}
    listed = ", ".join(f"{name} {rows}" for name, rows in bad.items())
    if not report:
        raise DataError(f"{what} holds no rows")
    if bad and bad_rows == "error":
        found = f"{sum(bad.values())} bad rows of {counts['rows_in']} ({listed})"
        raise DataError(f"{what} has {found}; clean.bad_rows=drop leaves them out")
    if counts["pairs_out"] == 0:
        raise DataError(f"{what} has no usable row among {counts['rows_in']} ({listed or 'clean.min_rating took all'})")
