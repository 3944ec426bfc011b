"""What prepare tells: the paper's Table 1, what was left out and why, and what deserves a second look."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa

from m3rec_spark.data.clean import Counts, total

_HEADER = ("market", "users", "items", "#Train", "#Valid", "#Test", "#Rate %")


def table_1(markets: pa.Table) -> list[dict[str, Any]]:
    """The table `markets` as plain rows, with `rate`: percent of a market's train items that others have in train too.

    The rate is cut after two decimals, not rounded, as in the paper (1111 of 1245 items: 89.23).
    """
    return [row | {"rate": 10_000 * row["shared_items"] // max(1, row["items"]) / 100} for row in markets.to_pylist()]


def table_1_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """`table_1` for the terminal; #Train counts rows as read, duplicates of a pair included, as the paper does."""
    names = ("users", "items", "train_rows", "valid", "test")
    cells = [(row["market_id"], *(f"{row[name]:,}" for name in names), f"{row['rate']:.2f}") for row in rows]
    return _aligned([_HEADER, *cells])


def counts_text(report: Counts) -> str:
    """Counts per market, a column for each that is not 0 everywhere, and the sum in the last line."""
    sums = total(report)
    names = [name for name, count in sums.items() if count]
    lines = [(market, [counts.get(name, 0) for name in names]) for market, counts in report.items()]
    lines.append(("all", [sums[name] for name in names]))
    return _aligned([("market", *names), *((market, *(f"{count:,}" for count in row)) for market, row in lines)])


def warnings(report: Mapping[str, Any]) -> Iterator[str]:
    """What is legal but easily a mistake, one line each.

    Args:
        report: `table_1`, `splits`, `cleaning` and `user_ids_in_several_markets`, as stages.prepare collects them.
    """
    for row in report["table_1"]:
        name = f"market {row['market_id']}"
        if row["users"] == 1:
            yield f"{name} has one user only: its metrics say nothing"
        if row["items"] == 1:
            yield f"{name} has one item only: there is nothing to rank it against"
        if row["valid"] + row["test"] == 0:
            yield f"{name} has no held-out pair: it is trained on, but not evaluated"
    kept = {row["market_id"] for row in report["table_1"]}
    for market_id in dict.fromkeys((*report["cleaning"], *report["splits"])):
        if market_id not in kept:
            yield f"market {market_id} is left out: it has no train pair"
    for half in ("valid", "test"):
        if not total(report["splits"])[half]:
            yield f"no user falls into the {half} half: use more users, or another split.seed"
    if padded := total(report["cleaning"])["padded"]:
        yield f"{padded:,} rows have ids with white space around them: kept to the letter, so ' a' and 'a' differ"
    if shared := report["user_ids_in_several_markets"]:
        yield f"{shared:,} user ids occur in several markets: each is taken for another user in each market"


def _aligned(rows: list[Any]) -> str:
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [str(first).ljust(widths[0]), *(str(cell).rjust(w) for cell, w in zip(others, widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
