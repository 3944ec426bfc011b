"""Tables 2, 3 and 4: all systems, both contracts, tests -> reports/compare.json, compare.html, compare.txt."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from m3rec_spark.errors import CapacityError, DataError
from m3rec_spark.evaluation.compare_html import compare_page
from m3rec_spark.evaluation.comparison import (
    gains_by_group,
    over_seeds,
    paired_tests,
    rows_by_seed,
    runner_up,
    seeded_name,
)
from m3rec_spark.evaluation.metrics import METRICS, Row
from m3rec_spark.evaluation.report import COMPARED, tracked_metrics
from m3rec_spark.evaluation.score_table import index_scores, read_scores, refuse_unscored_users, table_ranks
from m3rec_spark.evaluation.tables import OTHERS, table_2
from m3rec_spark.paths import held_alone, write_atomically
from m3rec_spark.similarity import ease
from m3rec_spark.stages.bench import Bench
from m3rec_spark.stages.compare_ranks import contracts, rank_runs
from m3rec_spark.stages.compare_runs import bench_of, make_runs
from m3rec_spark.stages.context import Context
from m3rec_spark.stages.systems import SYSTEMS
from m3rec_spark.stages.transfer import audit, shared_items
from m3rec_spark.stages.trials import all_trials

log = logging.getLogger(__name__)

REPORT, PAGE, TEXT = "reports/compare.json", "reports/compare.html", "reports/compare.txt"
_HEAD = 5  # an item of at least so many train pairs in the market counts as popular


def run(context: Context) -> None:
    """Trains, ranks and tests; an interrupted run goes on with the system that was cut.

    What the user may have got wrong is refused before the first training.
    """
    folder = context.workspace.root / "compare"
    folder.mkdir(parents=True, exist_ok=True)
    with held_alone(folder):
        _write(context, _plain(_compare(context, bench_of(context), folder)))


def _compare(context: Context, bench: Bench, folder: Path) -> dict[str, Any]:
    """The report."""
    given = context.config.compare
    if OTHERS in bench.market_ids.values():
        raise DataError(f"market id '{OTHERS}' is a word of the report (all other markets): rename it")
    if context.config.train.threads:
        torch.set_num_threads(context.config.train.threads)
    grids = all_trials(context.config)
    if "ease" in given.models:
        ease.plan(bench.arrays.n_items, context.config.ease.memory_gb)
    listed = contracts(context, folder)
    guests = [_Guest(context, name, path, listed) for name, path in given.scores.items()]
    runs, trials = make_runs(context, bench, folder, grids)
    report: dict[str, Any] = {"key": context.key, "settings": given.model_dump(mode="json")}
    report |= {"contracts": [], "rows": [], "means": [], "tests": [], "groups": [], "trials": trials, "unscored": {}}
    report["systems"] = {name: {"title": SYSTEMS[name].title, "family": SYSTEMS[name].family} for name in given.models}
    report["runs"] = [{"model": one.system, "settings": dict(one.settings), **one.result} for one in runs]
    report["unknown"] = {guest.name: guest.unknown for guest in guests}
    ranked = rank_runs(context, bench, runs, listed)
    for lists, contract in listed:
        ranks = ranked.filter(F.col("seen") == contract["seen"]).drop("seen")
        for guest in guests:
            added, report["unscored"][f"{contract['name']}/{guest.name}"] = guest.ranks(lists, contract)
            ranks = ranks.unionByName(added)
        ranks = ranks.cache()
        _add_figures(context, bench, report, ranks, lists, contract)
        ranks.unpersist()
    report["transfer"], report["transfer_skipped"] = _transfer(context, bench, folder)
    report["shared_items"] = shared_items(bench.arrays, bench.market_ids)
    return report


def _add_figures(
    context: Context,
    bench: Bench,
    report: dict[str, Any],
    ranks: DataFrame,
    lists: DataFrame,
    contract: Mapping[str, Any],
) -> None:
    """Of one contract: its rows, their means over seeds, tests and groups."""
    named = {"contract": contract["name"]}
    rows = rows_by_seed(ranks, bench.market_ids, contract["name"])
    means = over_seeds(rows)
    report["contracts"].append(contract)
    report["rows"] += rows
    report["means"] += means
    report["tests"] += [{**named, **test} for test in _tests(context, ranks, means, bench.market_ids)]
    report["groups"] += [{**named, **row} for row in _groups(context, ranks, lists, bench.market_ids)]


def _transfer(context: Context, bench: Bench, folder: Path) -> tuple[list[Row], str | None]:
    """The audit, or why there is none: it alone may need more memory than the systems that were compared."""
    try:
        return audit(context, bench, folder), None
    except CapacityError as error:
        log.warning("who helps whom is left out: %s", error)
        return [], str(error)


class _Guest:
    """Somebody else's scores, refused at once where they cannot be ranked.

    Args:
        name: of the row.
        path: of the table.
        listed: the candidates of every contract.
    """

    def __init__(
        self, context: Context, name: str, path: str, listed: Sequence[tuple[DataFrame, Mapping[str, Any]]]
    ) -> None:
        named = ("markets", "users", "items", "market_items", "interactions")
        self._tables = {table: context.workspace.read(context.spark(), table) for table in named}
        read = read_scores(context.spark(), path)
        self._scored = index_scores(read, self._tables).cache()
        self.name, self.unknown = name, read.count() - self._scored.count()
        if self.unknown:
            log.warning(
                "scores of '%s': %d are of a market, user or item that the workspace has not", name, self.unknown
            )
        for lists, _ in listed:
            refuse_unscored_users(self._scored, lists.filter("half = 'test'"), name, self._tables)

    def ranks(self, lists: DataFrame, contract: Mapping[str, Any]) -> tuple[DataFrame, int]:
        """RANKS, and how many candidates have no score."""
        test, name = lists.filter("half = 'test'"), seeded_name(self.name, 0)
        found, blank = table_ranks(self._scored, test, name, self._tables, contract["seen"])
        if blank:
            log.warning("scores of '%s': %d candidates have none and rank below all others", self.name, blank)
        return found, blank


def _tests(
    context: Context, ranks: DataFrame, means: Sequence[Row], market_ids: dict[int, str]
) -> list[dict[str, Any]]:
    """M3Rec against every other system; which of them is the runner-up is marked."""
    names = [name for name in (*context.config.compare.models, *context.config.compare.scores) if name != "m3rec"]
    if "m3rec" not in context.config.compare.models or not names:
        return []
    variants = [name for name in SYSTEMS if name.startswith("m3rec")]
    best = runner_up(means, variants, "ndcg_10", "test")
    seed = context.config.compare.seed
    tests = [test for metric in COMPARED for test in paired_tests(ranks, "m3rec", names, market_ids, metric, seed)]
    return [{**test, "runner_up": test["other"] == best} for test in tests]


def item_group(markets: Column, train_count: Column) -> Column:
    """Table 4: whether another market has train pairs of the item.

    Args:
        markets: in how many it has train pairs.
        train_count: of these in the market at hand; 0: cold, and `markets` are all others.
    """
    elsewhere = markets - (train_count > 0).cast("int")
    return F.when(elsewhere > 0, "overlapped").otherwise("market-specific")


def _groups(context: Context, ranks: DataFrame, lists: DataFrame, market_ids: dict[int, str]) -> list[Row]:
    """Table 4 and its kin: by how many markets sell the held-out item, its popularity, the length of the history."""
    spark, workspace = context.spark(), context.workspace
    items = workspace.read(spark, "market_items").select("market", "item", "train_count", "markets")
    held = lists.select("market", "user", F.col("positive").alias("item")).join(items, on=["market", "item"])
    lengths = workspace.read(spark, "interactions").filter("split = 'train'").groupBy("market", "user").count()
    kinds = {
        "item": item_group(F.col("markets"), F.col("train_count")),
        "popularity": F.when(F.col("train_count") == 0, "cold")
        .when(F.col("train_count") < _HEAD, f"1-{_HEAD - 1} pairs")
        .when(F.col("train_count") < 4 * _HEAD, f"{_HEAD}-{4 * _HEAD - 1} pairs")
        .otherwise(f"{4 * _HEAD} pairs and more"),
        "history": F.when(F.col("count") < 5, "1-4 items")
        .when(F.col("count") < 10, "5-9 items")
        .otherwise("10 and more"),
    }
    known = held.join(lengths, on=["market", "user"], how="left").fillna(0, subset=["count"]).cache()
    rows = []
    for kind, group in kinds.items():
        groups = known.select("market", "user", group.alias("group"))
        rows += [{"kind": kind, **row} for row in gains_by_group(ranks, groups, market_ids, "mrr")]
    known.unpersist()
    return rows


def _plain(value: Any) -> Any:
    """Values that JSON knows: a p-value where there is nothing to test becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value


def _write(context: Context, report: Mapping[str, Any]) -> None:
    root, text, page = context.workspace.root, table_2(report), compare_page(report)
    write_atomically(root / REPORT, json.dumps(report, indent=1, allow_nan=False).encode())
    write_atomically(root / TEXT, text.encode())
    write_atomically(root / PAGE, page.encode())
    context.tracker.json(dict(report), Path(REPORT).name)
    context.tracker.text(page, Path(PAGE).name)
    context.tracker.text(text, Path(TEXT).name)
    for contract in (one["name"] for one in report["contracts"]):
        rows = [row for row in report["means"] if row["contract"] == contract and row["metric"] in METRICS]
        context.tracker.metrics({f"{contract}/{name}": value for name, value in tracked_metrics(rows).items()})
