"""The model card: what was learned from what, how good it is where, and what it cannot do. Markdown, from the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from m3rec_spark.config import Config
from m3rec_spark.evaluation.gate import METRIC, SPLIT, values
from m3rec_spark.evaluation.metrics import MEAN


def model_card(config: Config, report: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """The card of the model that `report` (evaluate.json) judges."""
    contract = report["contract"]
    models = list(dict.fromkeys(row["model"] for row in report["rows"]))
    counts = contract["counts"]
    license_of = config.registry.data_license or "not stated (registry.data_license)"
    return f"""# {config.registry.name}: multi-market recommendation

Made by m3rec_spark {facts["version"]} (M3Rec, SIGIR 2022) from tables with the key `{facts["key"][:12]}`.

## Data
{len(_markets(report))} markets: {", ".join(_markets(report))}. Source: {config.source.format}.
Licence of the data: {license_of}.
Held out, leave one out: {counts["positives"]:,} pairs ({counts["valid"]:,} validation, {counts["test"]:,} test), of
them {counts["cold"]:,} of items that nobody had bought in their market.

## Quality
NDCG@10 of the test half, contract `{contract["name"]}` `{contract["sha256"][:12]}`: up to {contract["negatives"]}
negatives of the user's market, seen items {contract["seen"]}. ±: the 95% interval over the users of the test half.

{_table(report, models)}

Hyper-parameters and the shares of EASE were chosen on the validation half.

## Limits
- It ranks items that somebody bought in the market; a market that is new is served from V-Glob and B-Glob over the
  catalogue of the request.
- A user's own part is as old as the training; a history sent with the request counts at once.
- It learned from what was bought, so it repeats what was shown and liked before, popular items above all.
- The artifact holds the ids of the users and what they bought. Treat it as personal data.
"""


def _markets(report: Mapping[str, Any]) -> list[str]:
    return [market for market in values(report["rows"], report["rows"][0]["model"]) if market not in (MEAN, "all")]


def _table(report: Mapping[str, Any], models: list[str]) -> str:
    counted = [row for row in report["rows"] if (row["split"], row["metric"]) == (SPLIT, METRIC)]
    users = {row["market"]: row["n"] for row in counted if row["market"] != MEAN}
    cells = {(row["model"], row["market"]): _percent(row["value"], row["half_width"]) for row in counted}
    lines = [f"| market | users | {' | '.join(models)} |", f"|---|---|{'---|' * len(models)}"]
    for market in [*_markets(report), MEAN]:
        figures = " | ".join(cells[model, market] for model in models)
        lines.append(f"| {market} | {users.get(market, '')} | {figures} |")
    return "\n".join(lines)


def _percent(value: float, half_width: float) -> str:
    return f"{100 * value:.1f} ± {100 * half_width:.1f}"
