"""The words of the library: every table's columns. See docs/data_model.md.

Ids (`*_id`) are strings as in the source; indices (`market`, `user`, `item`, `local`) are int32, made by
`data.indexing` and valid only inside the workspace that made them.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyspark.sql import types as T

SCHEMA_VERSION = 3
RESERVED_MARKETS = frozenset({"all", "mean", "(none)"})  # rows of the reports that are no market


def _struct(*columns: tuple[str, T.DataType] | tuple[str, T.DataType, bool]) -> T.StructType:
    return T.StructType([T.StructField(c[0], c[1], c[2] if len(c) == 3 else False) for c in columns])


_INT, _LONG, _DOUBLE, _FLOAT = T.IntegerType(), T.LongType(), T.DoubleType(), T.FloatType()
_STRING, _BOOL, _INTS = T.StringType(), T.BooleanType(), T.ArrayType(T.IntegerType(), False)

RAW = _struct(  # cleaned interactions, still under the outside ids; never written
    ("market_id", _STRING), ("user_id", _STRING), ("item_id", _STRING), ("timestamp", _LONG, True)
)
INTERACTIONS = _struct(  # one row per distinct (market, user, item); split: train, valid or test
    ("market", _INT), ("user", _INT), ("item", _INT), ("timestamp", _LONG, True), ("split", _STRING)
)
MARKETS = _struct(  # the paper's Table 1, a row per market; train_rows counts rows read, train distinct pairs
    ("market", _INT), ("market_id", _STRING), ("users", _INT), ("items", _INT), ("train_rows", _LONG),
    ("train", _LONG), ("valid", _LONG), ("test", _LONG), ("shared_items", _INT),
)  # fmt: skip
USERS = _struct(("market", _INT), ("user", _INT), ("user_id", _STRING))  # user: 0.. within its market
ITEMS = _struct(("item", _INT), ("item_id", _STRING), ("markets", _INT))  # markets: in how many it has train rows
MARKET_ITEMS = _struct(  # local: 0.. within its market; train_count 0: known from the hold-out only (cold)
    ("market", _INT), ("item", _INT), ("local", _INT), ("train_count", _INT), ("markets", _INT)
)
CANDIDATES = _struct(  # one row per held-out positive; half: valid or test; negatives are global item indices
    ("market", _INT), ("user", _INT), ("positive", _INT), ("half", _STRING), ("cold", _BOOL), ("negatives", _INTS)
)
FEED = _struct(("market", _INT), ("user", _INT), ("item", _INT))  # train pairs in a seeded random order, for torch
GRAM = _struct(  # users of `market` who have both items; upper half (item_a <= item_b), zero cells absent
    ("market", _INT), ("item_a", _INT), ("item_b", _INT), ("count", _INT)
)
SIMILARITY = _struct(("item_a", _INT), ("item_b", _INT), ("weight", _FLOAT))  # B-Glob, eq. 7: rows sum to 1
WALKS = _struct(("walk", _LONG), ("items", _INTS))
ITEM_VECTORS = _struct(("item", _INT), ("vector", T.ArrayType(_FLOAT, False)))  # V-Glob
RANKS = _struct(  # expected rank (ties count half) among the candidates, and among all items of the market
    ("model", _STRING), ("market", _INT), ("user", _INT), ("half", _STRING), ("cold", _BOOL),
    ("rank", _DOUBLE), ("full_rank", _DOUBLE),
)  # fmt: skip
RECOMMENDATIONS = _struct(  # market: its id; rank 1 up; reasons: JSON texts, or null where they were not asked for
    ("user_id", _STRING), ("rank", _INT), ("item_id", _STRING), ("score", _FLOAT),
    ("reasons", T.ArrayType(_STRING), True), ("market", _STRING),
)  # fmt: skip
METRICS = _struct(
    ("model", _STRING), ("market", _STRING), ("split", _STRING), ("metric", _STRING), ("value", _DOUBLE), ("n", _LONG)
)


@dataclass(frozen=True)
class Table:
    """A table of the workspace: the stage that writes it, and its columns (None: a folder of files, not Parquet)."""

    stage: str
    schema: T.StructType | None


TABLES: dict[str, Table] = {
    "interactions": Table("prepare", INTERACTIONS),
    "markets": Table("prepare", MARKETS),
    "users": Table("prepare", USERS),
    "items": Table("prepare", ITEMS),
    "market_items": Table("prepare", MARKET_ITEMS),
    "candidates": Table("prepare", CANDIDATES),
    "feed": Table("prepare", FEED),
    "arrays": Table("prepare", None),
    "gram": Table("pretrain", GRAM),
    "ease": Table("pretrain", None),
    "linear": Table("pretrain", None),
    "similarity": Table("pretrain", SIMILARITY),
    "walks": Table("pretrain", WALKS),
    "item_vectors": Table("pretrain", ITEM_VECTORS),
    "model": Table("train", None),
    "ranks": Table("evaluate", RANKS),
    "metrics": Table("evaluate", METRICS),
    "recommendations": Table("recommend", RECOMMENDATIONS),
    "recommendations_of_list": Table("recommend", RECOMMENDATIONS),
}
STAGES = ("prepare", "pretrain", "train", "evaluate")
