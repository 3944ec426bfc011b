"""What a person and a tracker get to see of METRICS: terminal table, JSON, bars, flat names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from m3rec_spark.evaluation.metrics import ALL, MEAN, Row

TITLES = {"mrr": "MRR@10", "ndcg_10": "NDCG@10", "hr_10": "HR@10"}
COMPARED = {**TITLES, "full_ndcg_10": "NDCG@10 among all items of the market,"}  # a table of compare each


def report_json(contract: Mapping[str, Any], rows: Sequence[Row], cold: Sequence[Row], key: str = "") -> bytes:
    """The report as a file: `key` of the stage that made it, contract, its sha256, rows of METRICS, those of the cold.

    `cold_positives` counts them per market, and over all.
    """
    content = {
        "key": key,
        "sha256": contract["sha256"],
        "contract": contract,
        "rows": rows,
        "cold_positives": cold_positives(cold),
        "cold_rows": cold,
    }
    return json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode()


def cold_positives(cold: Iterable[Row]) -> dict[str, int]:
    """Market -> users whose positive nobody bought there before, from the metric rows of these users alone."""
    counts = {row["market"]: row["n"] for row in cold if row["split"] == "all" and row["market"] != MEAN}
    return dict(sorted(counts.items(), key=lambda count: count[0] == ALL))  # the total last


def format_report(contract: Mapping[str, Any], rows: Sequence[Row], cold: Sequence[Row], split: str = "test") -> str:
    """Plain text: a line per market and model; metrics among the candidates, then among all items of the market."""
    counts = ", ".join(f"{market} {n}" for market, n in cold_positives(cold).items()) or "none"
    metrics = [*TITLES, *(f"full_{name}" for name in TITLES)]
    head = ["market", "users", "model", *TITLES.values(), *(f"full {title}" for title in TITLES.values())]
    values, markets, models = _select(rows, split)
    body = [
        [market, str(values[model, market]["mrr"]["n"]), model, *(_percent(values[model, market], m) for m in metrics)]
        for market in markets
        for model in models
        if (model, market) in values
    ]
    return "\n".join(
        (
            f"Split {split}, values x 100; contract {contract['name']} {contract['sha256'][:12]}: "
            f"up to {contract['negatives']} negatives, seen items {contract['seen']}; full: all items of the market",
            *_aligned([head, *body]),
            f"Held-out items new to their market (cold; counted above), both halves: {counts}",
        )
    )


def bars(rows: Sequence[Row], metric: str = "ndcg_10", split: str = "test") -> Figure:
    """A group of bars per market, a bar per model."""
    values, markets, models = _select(rows, split)
    figure = Figure(figsize=(max(5.0, 1.2 * len(markets)), 3.5), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(1, len(models))
    for i, model in enumerate(models):
        heights = [values[model, market][metric]["value"] if (model, market) in values else 0.0 for market in markets]
        axes.bar([x + width * (i - (len(models) - 1) / 2) for x in range(len(markets))], heights, width, label=model)
    axes.set_xticks(range(len(markets)), [market.replace("$", r"\$") for market in markets])  # $ starts a formula
    axes.set_ylabel(TITLES.get(metric, metric))
    axes.set_title(f"{TITLES.get(metric, metric)} by market ({split})")
    if models:
        axes.legend()
    return figure


def heat_map(values: NDArray[np.float64], labels: Sequence[str], title: str) -> Figure:
    """A square of shares, row by column, with the figures in it."""
    size = max(3.0, 0.8 * len(labels))
    figure = Figure(figsize=(size + 1.5, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(values, cmap="Blues", vmin=0, vmax=1)
    plain = [label.replace("$", r"\$") for label in labels]
    axes.set_xticks(range(len(labels)), plain)
    axes.set_yticks(range(len(labels)), plain)
    for (row, column), value in np.ndenumerate(values):
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value > 0.6 else "black")
    axes.set_title(title)
    figure.colorbar(image)
    return figure


def tracked_metrics(rows: Iterable[Row], split: str = "test", main: str = "m3rec") -> dict[str, float]:
    """Names for the tracker: "model/market/metric" for every model, "market/metric" for the main one.

    >>> row = {"model": "m3rec", "market": "M@1", "split": "test", "metric": "ndcg_10", "value": 0.5, "n": 7}
    >>> tracked_metrics([row])
    {'m3rec/M_1/ndcg_10': 0.5, 'M_1/ndcg_10': 0.5}
    """
    chosen = [row for row in rows if row["split"] == split]
    names = tracked_names(row["market"] for row in chosen)
    values: dict[str, float] = {}
    for row in chosen:
        name = f"{names[row['market']]}/{row['metric']}"
        values[f"{row['model']}/{name}"] = row["value"]
        if row["model"] == main:
            values[name] = row["value"]
    return values


def tracked_names(markets: Iterable[str]) -> dict[str, str]:
    """Market id -> a name that MLflow takes (ASCII letters, digits, _ - . and space); distinct for distinct ids.

    >>> tracked_names(["de", "a/b", "a:b"])
    {'a/b': 'a_b', 'a:b': 'a_b_2', 'de': 'de'}
    """
    names: dict[str, str] = {}
    for market in sorted(set(markets)):
        plain = name = re.sub(r"[^A-Za-z0-9_\-. ]", "_", market).strip(" .") or "_"
        number = 1
        while name in names.values():
            number += 1
            name = f"{plain}_{number}"
        names[market] = name
    return names


def _select(rows: Sequence[Row], split: str) -> tuple[dict[tuple[str, str], dict[str, Row]], list[str], list[str]]:
    """((model, market) -> metric -> row, markets with the totals last, models in the order of the rows)."""
    chosen: dict[tuple[str, str], dict[str, Row]] = {}
    for row in rows:
        if row["split"] == split:
            chosen.setdefault((row["model"], row["market"]), {})[row["metric"]] = row
    found = {market for _, market in chosen}
    markets = [*sorted(found - {ALL, MEAN}), *(total for total in (ALL, MEAN) if total in found)]
    return chosen, markets, list(dict.fromkeys(model for model, _ in chosen))


def _aligned(table: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines; the market and the model to the left of their columns, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for cells in table:
        padded = (
            f"{cell:<{width}}" if i in (0, 2) else f"{cell:>{width}}"
            for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        yield "  ".join(padded).rstrip()


def _percent(metrics: Mapping[str, Row], name: str) -> str:
    return f"{100 * metrics[name]['value']:.1f}"
