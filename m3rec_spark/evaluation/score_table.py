"""RANKS of a model that is not ours, from its table (market, user_id, item_id, score), under the same contract.

An item that the table does not score for a user ranks below all that it scores, level with the others it leaves out;
how many candidates that are is counted. A test user without any score is an error: he cannot be ranked, and a zero
would be a lie. Cost: one join of the candidates with the scores, and one of the scores with the histories.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from py4j.protocol import Py4JJavaError
from pyspark.errors import PySparkException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from m3rec_spark.errors import DataError
from m3rec_spark.schema import RANKS

COLUMNS = ("market", "user_id", "item_id", "score")
_KEYS = ["market", "user", "item"]
_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_scores(spark: SparkSession, path: str) -> DataFrame:
    """The table as text ids and a double: .csv or .tsv with a header (.gz and the like, too), all else is Parquet.

    Raises:
        DataError: it is not there, is no Parquet, lacks a column, or holds a score that is no finite number, or a pair
            twice.
    """
    if not Path(path).exists():
        raise DataError(f"compare.scores: no file or folder {path}: name a CSV or Parquet one")
    endings = Path(path).suffixes
    try:
        if separator := next((_SEPARATORS[ending] for ending in endings if ending in _SEPARATORS), None):
            frame = spark.read.csv(path, header=True, sep=separator)
        else:
            frame = spark.read.parquet(path)
    except (PySparkException, Py4JJavaError):
        raise DataError(
            f"compare.scores: {path} cannot be read as Parquet: name Parquet, or a file that ends in .csv or .tsv"
        ) from None
    if missing := [name for name in COLUMNS if name not in frame.columns]:
        raise DataError(
            f"{path} has no column {', '.join(missing)}; it needs {', '.join(COLUMNS)}, got {frame.columns}"
        )
    ids = [F.col(name).cast("string").alias(name) for name in COLUMNS[:3]]
    read = frame.select(*ids, F.expr("try_cast(score AS double)").alias("score"))
    wrong = read.filter(F.col("score").isNull() | F.isnan("score") | (F.abs("score") == float("inf")))
    if example := wrong.first():
        raise DataError(
            f"{path}: {wrong.count():,} scores are no finite numbers, as that of user {example['user_id']} in market "
            f"{example['market']} for item {example['item_id']}: leave these rows out, or mend them"
        )
    doubled = read.groupBy(*COLUMNS[:3]).count().filter("count > 1")
    if example := doubled.first():
        raise DataError(
            f"{path}: user {example['user_id']} in market {example['market']} has item {example['item_id']} "
            f"{example['count']} times: leave one row for a pair"
        )
    return read


def index_scores(scores: DataFrame, tables: Mapping[str, DataFrame]) -> DataFrame:
    """(market, user, item, score) of `read_scores` by index; unknown ids have nothing to be ranked for.

    Args:
        scores: of `read_scores`.
        tables: markets, users and items of the workspace.
    """
    markets = tables["markets"].select("market", "market_id")
    named = scores.withColumnRenamed("market", "market_id").join(F.broadcast(markets), on="market_id")
    users, items = tables["users"], tables["items"].select("item", "item_id")
    return named.join(users, on=["market", "user_id"]).join(items, on="item_id").select(*_KEYS, "score")


def refuse_unscored_users(scored: DataFrame, candidates: DataFrame, name: str, tables: Mapping[str, DataFrame]) -> None:
    """Before a table is ranked.

    Args:
        scored: of `index_scores`.
        candidates: CANDIDATES, one half.
        name: of the table.
        tables: markets and users of the workspace.

    Raises:
        DataError: a user of the candidates has no score at all.
    """
    users = candidates.select("market", "user")
    without = users.join(scored.select("market", "user").distinct(), on=["market", "user"], how="left_anti")
    if count := without.count():
        named = without.join(tables["users"], on=["market", "user"]).join(tables["markets"], on="market")
        example = named.select("user_id", "market_id").first()
        raise DataError(
            f"scores of '{name}': {count:,} of {users.count():,} users to be ranked have none, as user "
            f"{' in market '.join(example) if example else '?'}: score every user of the test half"
        )


def table_ranks(
    scored: DataFrame, candidates: DataFrame, name: str, tables: Mapping[str, DataFrame], seen: str
) -> tuple[DataFrame, int]:
    """RANKS of the candidate rows given, and how many of their candidates have no score.

    Args:
        scored: of `index_scores`, with a score for every user.
        candidates: CANDIDATES, one half.
        name: for the column `model`.
        tables: market_items and interactions of the workspace.
        seen: as in the contract; under "excluded" the full rank leaves out the user's history.
    """
    listed = candidates.select("market", "user", F.explode("negatives").alias("item"))
    negatives = listed.join(scored, on=_KEYS, how="left")
    positives = candidates.select("market", "user", "half", "cold", F.col("positive").alias("item"))
    own = positives.join(scored, on=_KEYS, how="left").withColumnRenamed("score", "own")
    keyed = own.select("market", "user", "own")
    sampled = keyed.join(negatives, on=["market", "user"]).groupBy("market", "user").agg(_rank(F.lit(0)).alias("rank"))
    rest, left_out = _full(scored, own, tables, seen)
    full = keyed.join(rest, on=["market", "user"], how="left").join(left_out, on=["market", "user"])
    full = full.groupBy("market", "user").agg(_rank(F.first("left_out")).alias("full_rank"))
    ranks = own.join(sampled, on=["market", "user"]).join(full, on=["market", "user"]).withColumn("model", F.lit(name))
    blank = negatives.filter(F.col("score").isNull()).count() + own.filter(F.col("own").isNull()).count()
    return ranks.select(*(F.col(field.name).cast(field.dataType) for field in RANKS)), blank


def _rank(left_out: Column) -> Column:
    """Expected rank of `own` among the rows' scores and `left_out` items without one; null is below every score."""
    own, other = F.col("own"), F.col("score")
    above = F.count_if(other.isNotNull() & (own.isNull() | (other > own)))
    unscored = F.when(F.first("own").isNull(), left_out).otherwise(0)
    level = F.count_if(other.eqNullSafe(own) & F.col("item").isNotNull()) + unscored
    return 1.0 + above + level / 2.0


def _full(scored: DataFrame, own: DataFrame, tables: Mapping[str, DataFrame], seen: str) -> tuple[DataFrame, DataFrame]:
    """The scored rivals among all items of the market; and how many eligible ones each user has no score of."""
    pool = tables["market_items"].filter("train_count > 0").select("market", "item")
    history = tables["interactions"].filter("split = 'train'").select(*_KEYS)
    users = own.select("market", "user")
    rivals = scored.join(pool, on=["market", "item"]).join(own.select(*_KEYS), on=_KEYS, how="left_anti")
    taken = own.select(*_KEYS).join(pool, on=["market", "item"], how="left_semi")
    if seen == "excluded":
        rivals = rivals.join(history, on=_KEYS, how="left_anti")
        taken = taken.unionByName(history)
    sizes = pool.groupBy("market").agg(F.count("*").alias("pool"))
    counts = [
        frame.groupBy("market", "user").agg(F.count("*").alias(name))
        for name, frame in (("scored", rivals), ("taken", taken))
    ]
    left_out = users.join(sizes, on="market")
    for frame in counts:
        left_out = left_out.join(frame, on=["market", "user"], how="left")
    number = F.col("pool") - F.coalesce("scored", F.lit(0)) - F.coalesce("taken", F.lit(0))
    return rivals, left_out.select("market", "user", number.alias("left_out"))
