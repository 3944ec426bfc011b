"""docs/scaling.md's figures from build/bench/results.json: the table of ratios, a plot for every law, their slopes.

Run after `make bench-full`:  python benchmarks/scaling.py
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from harness import RESULTS, ROOT

FIGURES = ROOT / "docs" / "scaling"
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "m3rec"}  # text as text, and the same bytes again


def main() -> None:
    results = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    print(
        "| stage | peer | size | ours, s | peer, s | ratio | ours, MB | peer, MB |\n|---|---|---|---|---|---|---|---|"
    )
    for row in (row for row in results if row["peer"] != "law"):
        theirs = f"{row['peer_s']:.3g} | {row['ratio']:.2g}" if row["peer_s"] else "- | -"  # a target has no time
        memory = f"{row['ours_peak_mb']:.0f} | {row['peer_peak_mb']:.0f}"
        print(f"| {row['stage']} | {row['peer']} | {row['size']} | {row['ours_s']:.3g} | {theirs} | {memory} |")
    print()
    rows = [row for row in results if row["peer"] == "law"]
    if not rows:
        raise SystemExit("no law in build/bench/results.json: run `make bench-full` first")
    FIGURES.mkdir(exist_ok=True)
    plt.rcParams.update(STYLE)
    print("| stage | law | points | fitted slope |\n|---|---|---|---|")
    for row in rows:
        extra = row["extra"]
        draw(row["stage"], row["size"], extra)
        points = ", ".join(f"{x:g}: {y:.3g}" for x, y in extra["points"])
        law = f"{row['size']}: {extra['y_label']} over {extra['x_label']}"
        print(f"| {row['stage']} | {law} | {points} | {extra['slope']:.2f} |")


def draw(stage: str, name: str, extra: dict) -> Path:
    """A small log-log plot with the fitted power law."""
    x, y = np.array(extra["points"]).T
    slope, offset = np.polyfit(np.log(x), np.log(y), 1)
    figure, axes = plt.subplots(figsize=(3.6, 2.6))
    axes.loglog(x, y, "o", color="#1f5fa8")
    axes.loglog(x, np.exp(offset) * x**slope, color="#1f5fa8", linewidth=1, alpha=0.6)
    axes.set(xlabel=extra["x_label"], ylabel=extra["y_label"], title=f"{stage}: slope {slope:.2f}")
    axes.title.set_fontsize(9)
    figure.tight_layout()
    path = FIGURES / f"{stage}-{name.replace(' ', '-')}.svg"
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
    return path


if __name__ == "__main__":
    main()
