"""Reads interactions: CSV, TSV, Parquet, Spark tables, the XMarket layout and the demo shop, all into one frame.

The frame has `market_id`, `user_id`, `item_id` (strings exactly as in the source: leading zeros, quotes and spaces
stay), `rating` and `timestamp` (strings, only where the source has them) and, from text files, `malformed` (a line with
another number of fields than its header). Nothing is judged here: that is `data.clean`.

Text files are UTF-8 with a header; fields may be in double quotes, a quote inside them is doubled (RFC 4180, TSV too).
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from urllib.parse import urlparse

import pyarrow as pa
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql import types as T

from m3rec_spark.data.synthetic import generate_shop
from m3rec_spark.errors import DataError, UsageError, did_you_mean
from m3rec_spark.paths import local_path

XMARKET = {"M1": "s2", "M2": "t1", "M3": "s3", "M4": "t2", "M5": "s1"}  # the paper's Table 1 fits this order
_SEPARATORS = {"csv": ",", "tsv": "\t"}
_MALFORMED = "__malformed__"
# what Spark says when the source, and not the program, is at fault
_UNREADABLE = re.compile(
    r"\[(?:FAILED_READ_FILE|PATH_NOT_FOUND|UNABLE_TO_INFER_SCHEMA|TABLE_OR_VIEW_NOT_FOUND|PARSE_SYNTAX_ERROR"
    r"|CANNOT_READ_FILE)[^\]]*\]\s*(?P<reason>[^\n]*)|(?P<denied>[^\n]*Permission denied[^\n]*)"
)


@dataclass(frozen=True)
class Columns:
    """The source's own column names; None: it has no such column."""

    market: str | None
    user: str
    item: str
    rating: str | None = None
    timestamp: str | None = None


@dataclass(frozen=True)
class Part:
    """A file, folder or table; market: the id of all its rows, None if a column holds it."""

    path: str
    market: str | None = None


@dataclass(frozen=True)
class Origin:
    """Where the interactions, and the given held-out pairs if any, come from."""

    format: str
    columns: Columns
    train: tuple[Part, ...]
    holdout: tuple[Part, ...] = ()


def xmarket(folder: str | None, with_holdout: bool) -> Origin:
    """The five public markets: <folder>/{s1,s2,s3,t1,t2}/train_5core.tsv and valid_qrel.tsv."""
    if not folder:
        raise UsageError("source.path must name the folder that holds s1, s2, s3, t1 and t2")
    columns = Columns(None, "userId", "itemId", "rating")
    train = tuple(Part(f"{folder}/{place}/train_5core.tsv", market) for market, place in XMARKET.items())
    holdout = tuple(Part(f"{folder}/{place}/valid_qrel.tsv", market) for market, place in XMARKET.items())
    return Origin("tsv", columns, train, holdout if with_holdout else ())


def origin(
    format: str,
    columns: Columns,
    path: str | None = None,
    markets: Mapping[str, str] | None = None,
    holdout: str | None = None,
    holdouts: Mapping[str, str] | None = None,
) -> Origin:
    """One table with a market column (`path`), or one source per market (`markets`); the hold-out alike.

    Args:
        format: csv, tsv, parquet or table (the paths are names of Spark tables).
        columns: of every part; the market column is used where `path` or `holdout` is.
        path: file, folder, glob or table of all markets.
        markets: market id -> path.
        holdout: as `path`, of the given held-out pairs.
        holdouts: as `markets`.

    Raises:
        UsageError: neither or both are given, or a hold-out is for a market that has no source.
    """
    for wanted in set(holdouts or ()) - set(markets or ()):
        raise UsageError(
            f"source.holdouts: market '{wanted}' is not in source.markets.{did_you_mean(wanted, markets or ())}"
        )
    if holdout and holdouts:
        raise UsageError("give source.holdout or source.holdouts, not both")
    train = _parts("source.path", path, "source.markets", markets, columns)
    held = _parts("source.holdout", holdout, "source.holdouts", holdouts, columns) if holdout or holdouts else ()
    return Origin(format, columns, train, held)


def read(spark: SparkSession, source: Origin) -> tuple[DataFrame, DataFrame | None]:
    """(interactions, held-out pairs or None).

    Raises:
        DataError: a file or table is missing, unreadable or without the columns; the message names the nearest ones.
    """
    train = _union(spark, source, source.train)
    return train, _union(spark, source, source.holdout) if source.holdout else None


def read_demo(spark: SparkSession, scale: float, groups: int, seed: int) -> DataFrame:
    """The generated five-market shop of `data.synthetic`."""
    return from_arrow(spark, generate_shop(scale, groups, seed))


def from_arrow(spark: SparkSession, table: pa.Table) -> DataFrame:
    """An Arrow table as a DataFrame, its rows counted: some pandas/pyarrow pairs lose text and rows on this way."""
    frame = spark.createDataFrame(table)
    if (rows := frame.count()) != table.num_rows:
        raise DataError(f"Spark took {rows} of {table.num_rows} rows from Arrow: run `m3rec doctor`")
    return frame


def is_local(source: Origin, part: Part) -> bool:
    """Whether the part is a path that may be on this machine (file:, dbfs:, or no scheme at all)."""
    return source.format != "table" and urlparse(part.path).scheme in ("", "file", "dbfs")


@contextlib.contextmanager
def readable(what: str) -> Iterator[None]:
    """Turns Spark's failures to read a source, which come late and long, into one line.

    Raises:
        DataError: the block failed because a source cannot be read. All other errors pass as they are.
    """
    try:
        yield
    except Exception as error:
        match = _UNREADABLE.search(str(error))
        if match is None:
            raise
        reason = (match["reason"] or match["denied"]).split("SQLSTATE")[0].strip()
        raise DataError(f"cannot read {what}: {reason}") from None


def read_part(spark: SparkSession, source: Origin, part: Part) -> DataFrame:
    """One file, folder or table in the common form."""
    with readable(part.path):
        return _common_form(_load(spark, source.format, part.path), source.columns, part)


def _common_form(frame: DataFrame, columns: Columns, part: Part) -> DataFrame:
    if not [name for name in frame.columns if name != _MALFORMED]:
        raise DataError(f"{part.path} is empty: not even a header line with column names")
    market = F.lit(part.market) if part.market is not None else _id(frame, columns.market or "", part.path)
    selected = {
        "market_id": market,
        "user_id": _id(frame, columns.user, part.path),
        "item_id": _id(frame, columns.item, part.path),
    }
    if columns.rating:
        selected["rating"] = _existing(frame, columns.rating, part.path).cast("string")
    if columns.timestamp:
        selected["timestamp"] = _timestamp(frame, columns.timestamp, part.path)
    if _MALFORMED in frame.columns:
        selected["malformed"] = F.col(_MALFORMED).isNotNull()
    return frame.select(*(column.alias(name) for name, column in selected.items()))


def _parts(
    key: str, path: str | None, markets_key: str, markets: Mapping[str, str] | None, columns: Columns
) -> tuple[Part, ...]:
    if bool(path) == bool(markets):
        raise UsageError(f"give either {key} (one table with a market column) or {markets_key} (one per market)")
    if markets:
        return tuple(Part(place, market) for market, place in sorted(markets.items()))
    if columns.market is None:
        raise UsageError(f"{key} is one table for all markets: source.columns.market must name its market column")
    return (Part(str(path)),)


def _union(spark: SparkSession, source: Origin, parts: tuple[Part, ...]) -> DataFrame:
    return reduce(DataFrame.unionByName, [read_part(spark, source, part) for part in parts])


def _load(spark: SparkSession, format: str, path: str) -> DataFrame:
    if format == "table":
        return spark.table(path)
    if format == "parquet":
        return spark.read.parquet(spark_path(path))
    reader = spark.read.options(header=True, sep=_SEPARATORS[format], escape='"', encoding="UTF-8")
    header = reader.csv(spark_path(path)).schema  # no inference: every column is a string, so 007 stays 007
    fields = [*header.fields, T.StructField(_MALFORMED, T.StringType())]
    # a pruned line is not split to its end, and then nobody sees that it has a field too many
    reader = reader.options(columnNameOfCorruptRecord=_MALFORMED, columnPruning=False)
    return reader.schema(T.StructType(fields)).csv(spark_path(path))


def spark_path(path: str) -> str:
    """The path for Spark: links and ~ resolved where it exists here, else as given (a cluster's own file system)."""
    if urlparse(path).scheme not in ("", "file"):
        return path
    local = local_path(path)
    return f"file://{local}" if local.exists() else path


def _existing(frame: DataFrame, name: str, path: str) -> Column:
    known = [column for column in frame.columns if column != _MALFORMED]
    if name not in known:
        raise DataError(
            f"{path} has no column '{name}'.{did_you_mean(name, known)} "
            f"It has: {', '.join(known)}. Set source.columns to its names"
        )
    return F.col("`" + name.replace("`", "``") + "`")


def _id(frame: DataFrame, name: str, path: str) -> Column:
    column, kind = _existing(frame, name, path), frame.schema[name].dataType
    whole = isinstance(kind, T.DecimalType) and kind.scale == 0
    if not (whole or isinstance(kind, T.StringType | T.IntegralType)):
        raise DataError(f"column '{name}' of {path} is {kind.simpleString()}: ids must be strings or whole numbers")
    return column.cast("string")


def _timestamp(frame: DataFrame, name: str, path: str) -> Column:
    """As a string that `data.clean` parses: dates and times in microseconds since 1970, numbers as they are."""
    column, kind = _existing(frame, name, path), frame.schema[name].dataType
    if isinstance(kind, T.DateType | T.TimestampType | T.TimestampNTZType):
        column = F.unix_micros(column.cast("timestamp"))
    elif isinstance(kind, T.FractionalType):
        column = column.try_cast("long")
    return column.cast("string")
