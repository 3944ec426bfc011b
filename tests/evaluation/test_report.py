from __future__ import annotations

import io
import json
import re

from hypothesis import given
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name

from m3rec_spark.evaluation.report import bars, cold_positives, format_report, report_json, tracked_metrics

CONTRACT = {"name": "standard", "sha256": "0123456789abcdef", "negatives": 999, "seen": "excluded"}
METRICS = ("mrr", "ndcg_10", "hr_10", "full_mrr", "full_ndcg_10", "full_hr_10")


def rows(model: str, market: str, first: float, n: int = 7, split: str = "test") -> list[dict]:
    return [
        {"model": model, "market": market, "split": split, "metric": metric, "value": first + 0.01 * i, "n": n}
        for i, metric in enumerate(METRICS)
    ]


ROWS = [
    *rows("m3rec", "de", 0.5),
    *rows("m3rec", "all", 0.5),
    *rows("m3rec", "mean", 0.5, n=1),
    *rows("ease", "de", 0.1234),
    *rows("ease", "de", 0.9, split="valid"),
]
COLD = [*rows("m3rec", "de", 0.0, n=3, split="all"), *rows("m3rec", "mean", 0.0, n=1, split="all")]


def test_table() -> None:
    lines = format_report(CONTRACT, ROWS, COLD).splitlines()
    assert "standard 0123456789ab: up to 999 negatives, seen items excluded" in lines[0]
    assert re.split(r" {2,}", lines[1].strip()) == [
        "market", "users", "model", "MRR@10", "NDCG@10", "HR@10", "full MRR@10", "full NDCG@10", "full HR@10",
    ]  # fmt: skip
    assert lines[2].split() == ["de", "7", "m3rec", "50.0", "51.0", "52.0", "53.0", "54.0", "55.0"]
    assert lines[3].split() == ["de", "7", "ease", "12.3", "13.3", "14.3", "15.3", "16.3", "17.3"]
    assert [line.split()[0] for line in lines[4:6]] == ["all", "mean"]
    assert len({len(line) for line in lines[1:6]}) == 1  # aligned
    assert lines[6].endswith("de 3")


def test_no_cold_positives() -> None:
    assert format_report(CONTRACT, ROWS, []).endswith("none")
    assert cold_positives(COLD) == {"de": 3}


def test_json_holds_everything() -> None:
    report = json.loads(report_json(CONTRACT, ROWS, COLD))
    assert report["sha256"] == report["contract"]["sha256"] == CONTRACT["sha256"]
    assert report["rows"] == ROWS
    assert set(report["rows"][0]) == {"model", "market", "split", "metric", "value", "n"}
    assert report["cold_positives"] == {"de": 3}
    assert report["cold_rows"] == COLD


def test_tracked_metrics() -> None:
    tracked = tracked_metrics(ROWS)
    assert tracked["de/ndcg_10"] == tracked["m3rec/de/ndcg_10"] == 0.51
    assert tracked["ease/de/mrr"] == 0.1234  # the test half
    assert "de/full_hr_10" in tracked
    assert len(tracked) == 6 * 4 + 6 * 3


@given(st.sets(st.text(max_size=6), min_size=1, max_size=5))
def test_mlflow_takes_any_market(markets: set[str]) -> None:
    tracked = tracked_metrics(row for market in markets for row in rows("m3rec", market, 0.5))
    assert len(tracked) == 12 * len(markets)  # none lost
    for name in tracked:
        _validate_metric_name(name)


def test_bars_have_the_values_and_draw() -> None:
    odd = [*ROWS, *rows("m3rec", "$x_{", 0.25)]
    figure = bars(odd)
    axes = figure.axes[0]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["$x_{".replace("$", r"\$"), "de", "all", "mean"]
    m3rec, ease = axes.containers
    assert [round(bar.get_height(), 6) for bar in m3rec] == [0.26, 0.51, 0.51, 0.51]
    assert [round(bar.get_height(), 6) for bar in ease] == [0, 0.1334, 0, 0]
    figure.savefig(io.BytesIO(), format="png")
    bars([]).savefig(io.BytesIO(), format="png")
