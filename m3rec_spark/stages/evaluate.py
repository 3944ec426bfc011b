"""Stage 4: candidates, models -> ranks, metrics; reports/evaluate.json and, for the terminal, evaluate.txt."""

from __future__ import annotations

import json
import logging
from typing import Any

import pyarrow as pa

from m3rec_spark.errors import CorruptTableError
from m3rec_spark.evaluation.metrics import metrics_by_market
from m3rec_spark.evaluation.ranks import rank_users
from m3rec_spark.evaluation.report import bars, format_report, report_json, tracked_metrics
from m3rec_spark.paths import write_atomically
from m3rec_spark.ranking.scorers import CosineScorer, EaseScorer, PopularityScorer, Scorer, published_scorer
from m3rec_spark.stages.context import Context
from m3rec_spark.tables import Workspace, arrow_schema

log = logging.getLogger(__name__)

REPORT = "reports/evaluate.json"
TABLE = "reports/evaluate.txt"


def run(context: Context) -> None:
    """CANDIDATES and the published models -> RANKS, METRICS, the report."""
    spark, workspace, settings = context.spark(), context.workspace, context.config.evaluate
    scorers = [_scorer(name, workspace) for name in settings.models]
    manifest = workspace.manifest("candidates")
    if manifest is None or "contract" not in manifest.extra:
        raise CorruptTableError("table 'candidates' has no evaluation contract: run `m3rec prepare --force`")
    contract = manifest.extra["contract"]
    log.info("ranking %d held-out items with %s", manifest.rows, ", ".join(settings.models))

    candidates = workspace.read(spark, "candidates")
    frame = rank_users(candidates, scorers, workspace.folder("arrays"), settings.block, contract["seen"])
    workspace.write(frame, "ranks", context.key, extra={"contract": contract})
    ranks = workspace.read(spark, "ranks")
    markets = workspace.read_arrow("markets", ["market", "market_id"]).to_pydict()
    market_ids = dict(zip(markets["market"], markets["market_id"], strict=True))
    rows = metrics_by_market(ranks, market_ids)
    cold = metrics_by_market(ranks.filter("cold"), market_ids)

    write_atomically(workspace.root / REPORT, report_json(contract, rows, cold, context.key))
    write_atomically(workspace.root / TABLE, format_report(contract, rows, cold).encode())
    table = pa.Table.from_pylist(rows, schema=arrow_schema("metrics"))
    workspace.write_arrow(table, "metrics", context.key, extra={"contract": contract})
    context.tracker.metrics(tracked_metrics(rows))
    context.tracker.json(contract, "contract.json")
    context.tracker.figure(bars(rows), "ndcg_10_by_market.png")


def read_report(workspace: Workspace, key: str) -> dict[str, Any] | None:
    """The report made under a key; None where there is none, or another one, or it is damaged."""
    try:
        report = json.loads((workspace.root / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) and report.get("key") == key else None


def _scorer(name: str, workspace: Workspace) -> Scorer:
    if name == "popularity":
        return PopularityScorer()
    if name == "ease":
        return EaseScorer(str(workspace.folder("ease")))
    folder = str(workspace.folder("model"))
    return CosineScorer(folder) if name == "m3rec_cosine" else published_scorer(folder, str(workspace.folder("ease")))
