"""The bars of a workspace's report as an SVG, and its table for README.

python scripts/report_picture.py build/xmarket docs/images/xmarket.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import matplotlib

from m3rec_spark.evaluation.metrics import ALL
from m3rec_spark.evaluation.report import bars


def main() -> None:
    workspace, target = map(Path, sys.argv[1:3])
    rows = json.loads((workspace / "reports" / "evaluate.json").read_text(encoding="utf-8"))["rows"]
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "m3rec"})  # text as text, the same bytes again
    bars([row for row in rows if row["market"] != ALL]).savefig(target, metadata={"Date": None})
    print(table(rows))


def table(rows: list[dict]) -> str:
    """NDCG@10 of the test half with its 95% interval: a line a market, a column a model."""
    chosen = [row for row in rows if (row["split"], row["metric"]) == ("test", "ndcg_10") and row["market"] != ALL]
    models = list(dict.fromkeys(row["model"] for row in chosen))
    lines = [f"| market | {' | '.join(models)} |", f"|---|{'---|' * len(models)}"]
    for market in dict.fromkeys(row["market"] for row in chosen):
        cells = {row["model"]: row for row in chosen if row["market"] == market}
        figures = (f"{100 * cells[one]['value']:.1f} ± {100 * cells[one]['half_width']:.1f}" for one in models)
        lines.append(f"| {market} | {' | '.join(figures)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
