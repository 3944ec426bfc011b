"""Tables 2, 3 and 4 of the paper as rows of text, from the report of compare: for the terminal and the page."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from m3rec_spark.evaluation.metrics import ALL, MEAN
from m3rec_spark.evaluation.report import COMPARED
from m3rec_spark.evaluation.significance import FEWEST

Report = Mapping[str, Any]
Table = list[list[str]]
VARIANTS = ("m3rec", "m3rec_without_intra", "m3rec_without_inter", "m3rec_without_both")
OTHERS = "others"  # the helper that is all other markets
CUT = " \N{DAGGER}"  # at the title of a system that the clock ended at its best epoch
_LEVELS = ((0.001, "***"), (0.01, "**"), (0.05, "*"))


def markets_of(report: Report) -> list[str]:
    """The markets' ids in order, then the mean over them."""
    return [*sorted({row["market"] for row in report["means"]} - {ALL, MEAN}), MEAN]


def names_of(report: Report, contract: str) -> list[str]:
    """Systems and external rows in the order of the report, the variants of Table 3 left out."""
    present = {row["model"] for row in means(report, contract)} - {*VARIANTS[1:]}
    known = [name for name in report["systems"] if name in present]
    return known + sorted(present - set(known))


def means(report: Report, contract: str) -> list[Mapping[str, Any]]:
    """The rows of a contract, means over seeds."""
    return [row for row in report["means"] if row["contract"] == contract]


def values(report: Report, contract: str, metric: str, split: str = "test") -> dict[tuple[str, str], Mapping[str, Any]]:
    """(model, market) -> the row of a metric."""
    chosen = (row for row in means(report, contract) if (row["metric"], row["split"]) == (metric, split))
    return {(row["model"], row["market"]): row for row in chosen}


def title(report: Report, name: str) -> str:
    """The name of a row as the paper has it."""
    return str(report["systems"].get(name, {}).get("title", name))


def stars(report: Report, contract: str, metric: str, other: str, market: str) -> str:
    """* ** *** where M3Rec gains on the other significantly (paired t-test, Holm over markets); + where it loses."""
    for test in report["tests"]:
        if (test["contract"], test["metric"], test["other"], test["market"]) == (contract, metric, other, market):
            marks = [mark for level, mark in _LEVELS if test["p_holm"] is not None and test["p_holm"] < level]
            return (marks[0] if test["difference"] > 0 else "+") if marks else ""
    return ""


def system_table(report: Report, contract: str, metric: str, names: Sequence[str]) -> Table:
    """A header, and a row for every system: value x 100 in every market, spread over seeds, significance.

    A system that the clock cut is marked.
    """
    markets, found, cut = markets_of(report), values(report, contract, metric), _cut(report)
    table = [["system", "data", "seeds", *markets]]
    for name in names:
        cells = [found.get((name, market)) for market in markets]
        seeds = next((str(cell["seeds"]) for cell in cells if cell), "0")
        family = str(report["systems"].get(name, {}).get("family", "external"))
        texts = [
            _cell(report, contract, metric, name, market, cell) for market, cell in zip(markets, cells, strict=True)
        ]
        table.append([title(report, name) + CUT * (name in cut), family, seeds, *texts])
    return table


def runner_up_table(report: Report, contract: str, metric: str) -> Table:
    """M3Rec less the best other system, by market and over all users: 95% interval, p-values; the header alone if none.

    p: of the paired t-test (Holm over the markets) and of Wilcoxon's.
    """
    tests = [
        test
        for test in report["tests"]
        if (test["contract"], test["metric"]) == (contract, metric) and test["runner_up"]
    ]
    table = [["M3Rec less", "market", "users", "difference x 100", "p (t, Holm)", "p (Wilcoxon)"]]
    for test in tests:
        ps = [f"{test[name]:.1e}" if test[name] is not None else "-" for name in ("p_holm", "p_wilcoxon")]
        table.append([title(report, test["other"]), test["market"], f"{test['users']:,}", _gain(test), *ps])
    return table


def unscored_table(report: Report) -> Table:
    """How many candidates the tables of somebody else's scores left out; the header alone if none did."""
    left_out = [[*place.split("/", 1), f"{count:,}"] for place, count in report["unscored"].items() if count]
    return [["contract", "table of scores", "candidates without a score: below all others"], *left_out]


def thin_markets(report: Report) -> list[str]:
    """Markets with fewer test users than a test needs, and how many: neither tested nor part of the mean."""
    users = dict.fromkeys(report["shared_items"]["markets"], 0)
    for row in report["means"]:
        if row["market"] in users:
            users[row["market"]] = max(users[row["market"]], row["n"])
    return [f"{market} ({n})" for market, n in sorted(users.items()) if n < FEWEST]


def group_table(report: Report, contract: str, kind: str, names: Sequence[str]) -> Table:
    """Mean MRR x 100 by group of users, of some systems, with its 95% interval over users and their number."""
    rows = [row for row in report["groups"] if (row["contract"], row["kind"]) == (contract, kind)]
    markets = sorted({row["market"] for row in rows})
    found = {(row["model"], row["market"], row["group"]): row for row in rows}
    table = [["group", "system", *markets]]
    for group in sorted({row["group"] for row in rows}, key=_in_order):
        for name in names:
            cells = [found.get((name, market, group)) for market in markets]
            if any(cells):
                texts = [_of_group(cell) if cell else "-" for cell in cells]
                table.append([group, title(report, name), *texts])
    return table


def transfer_table(report: Report) -> Table:
    """Gain in NDCG@10 x 100 of every market from every other, with its 95% interval; * p < 0.05 (Holm)."""
    rows = report["transfer"]
    markets = sorted({row["market"] for row in rows})
    found = {(row["helper"], row["market"]): row for row in rows}
    table = [["with the data of", *(f"for {market}" for market in markets)]]
    for helper in sorted({row["helper"] for row in rows}, key=lambda name: (name != OTHERS, name)):
        cells = [found.get((helper, market)) for market in markets]
        table.append([helper, *(_gain(cell) if cell else "-" for cell in cells)])
    return table


def trial_table(report: Report) -> Table:
    """What was tried, the seconds of its training, and the limit that ended it; a closed form ends by itself."""
    table = [["system", "settings", "validation NDCG@10 x 100", "seconds", "stopped by"]]
    for trial in report["trials"]:
        settings = ", ".join(f"{key}={value}" for key, value in trial["settings"].items()) or "as configured"
        found = "-" if "failed" in trial else f"{100 * trial['valid_ndcg_10']:.2f}"
        end = trial.get("failed") or trial.get("stopped_by") or "-"
        table.append([title(report, trial["model"]), settings, found, f"{trial['seconds']:.0f}", end])
    return table


def _cut(report: Report) -> Counter[str]:
    """Systems whose runs the clock ended at their best epoch, and how many runs."""
    return Counter(
        run["model"]
        for run in report["runs"]
        if any(
            phase.get("stopped_by") == "seconds" and phase["best_epoch"] == phase["epochs"]
            for phase in (run, run.get("pretrained", {}))
        )
    )


def _counted(report: Report, runs: Counter[str]) -> str:
    return ", ".join(f"{title(report, name)} ({number})" for name, number in runs.items())


def remarks(report: Report) -> list[str]:
    """Sentences on what a reader would take for something else: untested markets, systems cut short, unknown ids."""
    thin = ", ".join(thin_markets(report))
    told = [f"Fewer than {FEWEST} test users, not tested and not in the mean: {thin}." if thin else ""]
    cut, failed = _cut(report), Counter(trial["model"] for trial in report["trials"] if "failed" in trial)
    told.append(
        f"{CUT.strip()} Ended by the clock at their best epoch, so that more seconds might bring more (runs): "
        f"{_counted(report, cut)}." if cut else ""
    )  # fmt: skip
    told.append(f"Runs whose training diverged, left out: {_counted(report, failed)}." if failed else "")
    told += [
        f"{count:,} scores of '{name}' are of a market, user or item that the workspace has not." if count else ""
        for name, count in report["unknown"].items()
    ]
    return [sentence for sentence in told if sentence]


def table_2(report: Report) -> str:
    """Plain text: Table 2 under every contract, the ablations, and who helps whom."""
    parts = []
    for contract in (one["name"] for one in report["contracts"]):
        for metric in ("ndcg_10", "mrr", "hr_10", "full_ndcg_10"):
            head = f"{COMPARED[metric]} x 100, test half, contract {contract}"
            names = [*names_of(report, contract), *_ablations(report, contract)]
            parts.append("\n".join([head, *aligned(system_table(report, contract, metric, names))]))
        if len(table := runner_up_table(report, contract, "ndcg_10")) > 1:
            parts.append("\n".join([f"against the runner-up, NDCG@10, contract {contract}", *aligned(table)]))
    if len(table := unscored_table(report)) > 1:
        parts.append("\n".join(aligned(table)))
    skipped = report["transfer_skipped"]
    audited = [f"left out: {skipped}"] if skipped else aligned(transfer_table(report))
    parts.append("\n".join(["who helps whom (EASE^R, NDCG@10 x 100)", *audited]))
    parts += remarks(report)
    legend = "M3Rec is better, p < 0.05, 0.01, 0.001 (paired t-test, Holm over markets); +: it is worse"
    if report["tests"]:
        parts.append(f"* ** ***: {legend}. In differences *: p < 0.05, either way")
    return "\n\n".join(parts) + "\n"


def aligned(table: Table) -> list[str]:
    """Lines with the columns under each other."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(f"{cell:<{w}}" for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]


def _ablations(report: Report, contract: str) -> list[str]:
    present = {row["model"] for row in means(report, contract)}
    return [name for name in VARIANTS[1:] if name in present]


def _cell(report: Report, contract: str, metric: str, name: str, market: str, row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    spread = f"±{100 * row['spread']:.1f}" if row["seeds"] > 1 else ""
    return f"{100 * row['value']:.1f}{spread}{stars(report, contract, metric, name, market)}"


def _of_group(row: Mapping[str, Any]) -> str:
    width = f" ± {100 * row['half_width']:.1f}" if row["half_width"] is not None else ""
    return f"{100 * row['value']:.1f}{width} ({row['n']})"


def _in_order(group: str) -> tuple[int, str]:
    """10 comes after 9; groups without a number first."""
    number = re.match(r"\d+", group)
    return (int(number.group()) if number else -1, group)


def _gain(row: Mapping[str, Any]) -> str:
    if row["difference"] is None:  # no test user of this market
        return "-"
    if row["low"] is None:
        return f"{100 * row['difference']:+.1f} (untested)"
    mark = "*" if row["p_holm"] is not None and row["p_holm"] < 0.05 else ""
    return f"{100 * row['difference']:+.1f} [{100 * row['low']:+.1f}, {100 * row['high']:+.1f}]{mark}"
