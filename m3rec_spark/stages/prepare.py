"""Stage 1: source -> items, market_items, users, markets, interactions, feed, arrays, candidates."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from pyspark.sql import DataFrame, SparkSession

from m3rec_spark.config import Config, digest
from m3rec_spark.data import clean, indexing, sources, split, summary
from m3rec_spark.data.arrays import save_arrays
from m3rec_spark.data.build_arrays import build_arrays
from m3rec_spark.data.digests import digest_origin, refuse_workspace_in
from m3rec_spark.errors import DataError
from m3rec_spark.evaluation.candidates import publish_candidates
from m3rec_spark.paths import write_atomically
from m3rec_spark.schema import RESERVED_MARKETS
from m3rec_spark.stages.context import Context

log = logging.getLogger(__name__)

REPORT = "reports/prepare.json"


def run(context: Context) -> None:
    """Reads, cleans, splits, indexes and publishes; prints Table 1; writes reports/prepare.json.

    Raises:
        DataError: the source cannot be read, holds nothing usable, or leaves nothing to evaluate.
        UsageError: settings that do not fit each other, or a workspace inside the source.
    """
    with contextlib.ExitStack() as cached:
        report, assigned = _clean_and_split(context, cached)
        _publish_tables(context, report, assigned)
    report["contract"] = _publish_derived(context, report)
    _tell(context, report)


def source_digest(config: Config, spark: Callable[[], SparkSession]) -> str:
    """Digest of the source's content; `spark` is called only for tables and for files that are not here.

    Raises:
        DataError: the source is missing or unreadable.
    """
    if config.source.format == "demo":
        return digest("demo", config.demo)
    return digest_origin(_origin(config), spark)


def refuse_workspace(config: Config, root: Path) -> None:
    """Raises UsageError if the workspace and the source overlap; to be asked before anything is written."""
    if config.source.format != "demo":
        refuse_workspace_in(_origin(config), root)


def _origin(config: Config) -> sources.Origin:
    settings = config.source
    if settings.format == "xmarket":
        return sources.xmarket(settings.path, with_holdout=config.split.method == "given")
    columns = sources.Columns(**settings.columns.model_dump())
    places = settings.model_dump(include={"path", "markets", "holdout", "holdouts"})
    return sources.origin(settings.format, columns, **places)


def _read(context: Context) -> tuple[DataFrame, DataFrame | None]:
    config = context.config
    if config.source.format == "demo":
        return sources.read_demo(context.spark(), **config.demo.model_dump()), None
    refuse_workspace(config, context.workspace.root)
    return sources.read(context.spark(), _origin(config))


def _clean_and_split(context: Context, cached: contextlib.ExitStack) -> tuple[dict[str, Any], DataFrame]:
    """What was counted, and the persisted pairs with their split; `cached` lets go of them."""
    settings, method = context.config.clean, context.config.split
    source, holdout = _read(context)
    kept = clean.clean(source, "the source", **settings.model_dump())
    cached.callback(kept.cached.unpersist)
    report: dict[str, Any] = {"cleaning": kept.report}
    held = None
    if holdout is not None:  # no k-core: it holds one pair of a user
        held_out = clean.clean(holdout, "the hold-out", settings.bad_rows, settings.min_rating)
        cached.callback(held_out.cached.unpersist)
        report["holdout_cleaning"], held = held_out.report, held_out.pairs
    has_timestamp = "timestamp" in source.columns
    assigned = split.assign(split.mark(method.method, kept.pairs, held, method.seed, has_timestamp), method.seed)
    assigned.persist()
    cached.callback(assigned.unpersist)
    return {**report, "splits": split.count_splits(assigned)}, assigned


def _publish_tables(context: Context, report: dict[str, Any], assigned: DataFrame) -> None:
    spark, workspace, key = context.spark(), context.workspace, context.key
    index = indexing.index_items(indexing.count_items(assigned))
    for reserved in RESERVED_MARKETS.intersection(index.market_ids):
        raise DataError(f"market id '{reserved}' is a word of the reports (all users, mean of markets): rename it")
    workspace.write_arrow(index.items, "items", key)
    workspace.write_arrow(index.market_items, "market_items", key)
    workspace.write(indexing.index_users(assigned, index.market_ids), "users", key)
    users = workspace.read(spark, "users")
    n_users, report["user_ids_in_several_markets"] = indexing.count_users(users)
    markets = index.table_1(report["splits"], n_users)
    workspace.write_arrow(markets, "markets", key)
    rows = sum(pc.sum(markets[name]).as_py() for name in ("train", "valid", "test"))
    pairs = indexing.index_pairs(assigned, index.market_ids, users, workspace.read(spark, "items"))
    workspace.write(indexing.file_layout(pairs, rows), "interactions", key)
    report["table_1"] = summary.table_1(markets)
    report["cold"] = index.cold


def _publish_derived(context: Context, report: dict[str, Any]) -> dict[str, Any]:
    """Feed, arrays and candidates from the published tables; returns the evaluation contract."""
    spark, workspace, key, config = context.spark(), context.workspace, context.key, context.config
    train = sum(row["train"] for row in report["table_1"])
    workspace.write(indexing.feed_layout(workspace.read(spark, "interactions"), train, config.split.seed), "feed", key)
    with workspace.publishing("arrays", key) as folder:
        save_arrays(build_arrays(workspace), folder)
    return publish_candidates(spark, workspace, key, **config.candidates.model_dump())


def _tell(context: Context, report: dict[str, Any]) -> None:
    log.info("rows read and left out:\n%s", summary.counts_text(report["cleaning"]))
    if "holdout_cleaning" in report:
        log.info("the same of the hold-out:\n%s", summary.counts_text(report["holdout_cleaning"]))
    log.info("pairs by split:\n%s", summary.counts_text(report["splits"]))
    log.info("held-out pairs of items without train pair in the market:\n%s", summary.counts_text(report["cold"]))
    report["warnings"] = list(summary.warnings(report))
    for warning in report["warnings"]:
        log.warning("%s", warning)
    log.info("the markets (Table 1 of the paper):\n%s", summary.table_1_text(report["table_1"]))
    write_atomically(context.workspace.root / REPORT, json.dumps(report, indent=1, ensure_ascii=False).encode())
    context.tracker.json(report, "prepare.json")
    context.tracker.dataset("interactions", context.key, clean.total(report["cleaning"])["rows_in"])
    context.tracker.dataset("candidates", report["contract"]["sha256"], report["contract"]["counts"]["positives"])
    context.tracker.metrics({f"{row['market_id']}/train_rows": row["train_rows"] for row in report["table_1"]})
