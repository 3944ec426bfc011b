"""The report of compare as one self-contained page: no script, no network, figures as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from m3rec_spark.evaluation.report import COMPARED
from m3rec_spark.evaluation.tables import (
    CUT,
    VARIANTS,
    Report,
    Table,
    group_table,
    markets_of,
    means,
    names_of,
    remarks,
    runner_up_table,
    system_table,
    title,
    transfer_table,
    trial_table,
    unscored_table,
    values,
)

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1c2430;max-width:1080px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{margin-top:2.4rem;border-bottom:1px solid #d5dae1;padding-bottom:.2rem}
table{border-collapse:collapse;font-size:13px;margin:.6rem 0 1.2rem}
td,th{padding:.25rem .6rem;text-align:right;border-bottom:1px solid #e6e9ee;white-space:nowrap}
.left{text-align:left}.wrap td.left+td.left{white-space:normal}
td:first-child,th:first-child{position:sticky;left:0;background:#fff}
tr.ours,tr.ours td:first-child{background:#eaf3ff;font-weight:600}th,th:first-child{background:#f5f7f9}
.note{color:#5b6675;font-size:13px}code{background:#f2f4f7;padding:0 .25rem;border-radius:3px}
.scroll{overflow-x:auto}.key{display:inline-block;margin-right:1rem}
.key i{display:inline-block;width:.8em;height:.8em;margin-right:.3em}
"""
_COLOURS = (  # a system has the same one in all figures, ours the first
    "#1f6feb", "#e36209", "#2da44e", "#8250df", "#cf222e", "#9a6700", "#0a7ea4", "#bf3989", "#57606a", "#84cc16",
    "#79b8ff", "#ffb077", "#8ddb8c", "#c5a8f5", "#f5a3a3", "#e3c04f", "#6fd3e3", "#f2a5d0", "#b1bac4", "#3f4f1f",
)  # fmt: skip
_LETTER = 7.5  # width of one in a figure, about
_OURS = "m3rec"
_KINDS = {
    "item": "Table 4: items of one market and of several",
    "popularity": "By popularity of the held-out item in its market",
    "history": "By length of the history",
}
_HELPS = (
    "<p>What the interactions of one market add to another: EASE^R with all markets against EASE^R without that one, "
    "NDCG@10 x 100 on the test half, 95% interval; * p &lt; 0.05 (paired t-test, Holm). The row <i>others</i> is "
    "against the market alone.</p>"
)


def compare_page(report: Report) -> str:
    """The page."""
    parts = [_summary(report)]
    for contract in (one["name"] for one in report["contracts"]):
        parts += _contract(report, contract)
    if len(table := unscored_table(report)) > 1:
        parts += ["<h2>Left out by tables of scores</h2>", _html(table, report)]
    if skipped := report["transfer_skipped"]:
        parts.append(f"<h2>Who helps whom</h2><p>Left out: {escape(skipped)}</p>")
    else:
        parts += ["<h2>Who helps whom</h2>", _HELPS, _html(transfer_table(report), report, left=1)]
    parts += ["<h3>Items that two markets share</h3>", _heat(report["shared_items"])]
    parts += ["<h2>Training</h2><p>Validation NDCG@10 by epoch, first seed of each system; of M3Rec and its variants "
              "that of the cosine alone.</p>", _curves(report)]  # fmt: skip
    parts += ["<h3>Settings tried on the validation half</h3>", _html(trial_table(report), report, wrap=True)]
    head = f"<meta charset=utf-8><title>m3rec compare</title><style>{_STYLE}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>"


def _summary(report: Report) -> str:
    contracts = "".join(
        f"<li>{escape(one['name'])}: <code>{one['sha256'][:16]}</code>, {one['counts']['test']:,} test users, "
        f"up to {one['negatives']} negatives, seen items {escape(one['seen'])}</li>"
        for one in report["contracts"]
    )
    told = "".join(f"<p class=note>{escape(sentence)}</p>" for sentence in remarks(report))
    return (
        "<h1>Multi-market recommendation: the systems compared</h1>"
        f"<p>Leave-one-out on frozen candidate lists; settings chosen on the validation half.</p><ul>{contracts}</ul>"
        "<p class=note>&plusmn; standard deviation over seeds. * ** ***: M3Rec is better at p &lt; 0.05, 0.01, 0.001 "
        f"(paired t-test on users' gains, Holm over markets; of the mean a normal test); +: it is worse.</p>{told}"
    )


def _contract(report: Report, contract: str) -> list[str]:
    """Tables 2 to 4 and the bars, under one contract."""
    names, parts = names_of(report, contract), [f"<h2>Contract {escape(contract)}: Table 2</h2>"]
    for metric, head in COMPARED.items():
        parts.append(f"<h3>{head} x 100, test half</h3>{_html(system_table(report, contract, metric, names), report)}")
    if len(table := runner_up_table(report, contract, "ndcg_10")) > 1:
        parts.append(f"<h3>Against the runner-up, NDCG@10, with 95% intervals</h3>{_html(table, report)}")
    parts += ["<h3>NDCG@10 by market, with 95% intervals over users</h3>", _bars(report, contract, names)]
    trained = {row["model"] for row in means(report, contract)}
    variants = [name for name in VARIANTS if name in trained]
    if len(variants) > 1:
        table = system_table(report, contract, "mrr", variants)
        parts.append(f"<h3>Table 3: without the similarities, MRR@10 x 100</h3>{_html(table, report)}")
    guests = sorted(trained - set(report["systems"]))
    shown = dict.fromkeys((_OURS, "m3rec_without_both", *_runner_up(report, contract), "ease", *guests))
    for kind, head in _KINDS.items():
        table = group_table(report, contract, kind, [name for name in shown if name in trained])
        if len(table) > 1:
            parts.append(f"<h3>{head}, MRR@10 x 100 (users)</h3>{_html(table, report)}")
    return parts


def _runner_up(report: Report, contract: str) -> set[str]:
    return {test["other"] for test in report["tests"] if test["runner_up"] and test["contract"] == contract}


def _html(table: Table, report: Report, left: int = 2, wrap: bool = False) -> str:
    """The first `left` columns are texts; the second may be broken into lines if `wrap`."""
    ours = title(report, _OURS)
    rows = [_row("th", table[0], left, "")]
    rows += [
        _row("td", row, left, " class=ours" if ours in (row[0].removesuffix(CUT), row[1]) else "") for row in table[1:]
    ]
    return f"<div class='scroll{' wrap' if wrap else ''}'><table>{''.join(rows)}</table></div>"


def _row(tag: str, cells: Sequence[str], left: int, more: str) -> str:
    texts = (
        f"<{tag}{' class=left' if number < left else ''}>{escape(cell)}</{tag}>" for number, cell in enumerate(cells)
    )
    return f"<tr{more}>{''.join(texts)}</tr>"


def _bars(report: Report, contract: str, names: Sequence[str]) -> str:
    """A group of bars for every market, whiskers from the users' 95% interval."""
    markets, found = markets_of(report), values(report, contract, "ndcg_10")
    highest = _top(max((row["value"] + row["half_width"] for row in found.values()), default=1.0))
    bar, height, left = 11, 220, 40
    group = max(bar * len(names) + 18, _broadest(markets))
    width = left + group * len(markets)
    marks = _grid(left, width, highest, height)
    for g, market in enumerate(markets):
        x = left + g * group + 6
        marks.append(_text(x + group / 2 - 9, height + 34, market, "middle"))
        first = x + (group - 18 - bar * len(names)) / 2  # in the middle of a broad name
        for b, name in enumerate(names):
            if row := found.get((name, market)):
                marks.append(
                    _bar(first + b * bar, bar, row, highest, height, _colour(report, name), title(report, name))
                )
    return _svg(width, height + 44, marks) + _legend(report, names)


def _bar(x: float, width: float, row: Mapping[str, Any], highest: float, height: float, colour: str, name: str) -> str:
    top, middle = _y(row["value"], highest, height), x + width / 2 - 1
    low, high = (_y(max(0.0, row["value"] + sign * row["half_width"]), highest, height) for sign in (-1, 1))
    told = f"{escape(row['market'])}: {100 * row['value']:.1f} ± {100 * row['half_width']:.1f}"
    return (
        f'<rect x="{x}" y="{top:.1f}" width="{width - 2}" height="{height + 16 - top:.1f}" fill="{colour}">'
        f"<title>{escape(name)}, {told}</title></rect>"
        f'<line x1="{middle}" x2="{middle}" y1="{low:.1f}" y2="{high:.1f}" stroke="#1c2430"/>'
    )


def _top(highest: float) -> float:
    """The axis ends at a round number of hundredths."""
    return next((top / 100 for top in (2, 4, *range(10, 100, 10)) if highest <= top / 100), 1.0)


def _y(value: float, highest: float, height: float) -> float:
    return round(16 + height * (1 - value / highest), 1)


def _grid(left: float, right: float, highest: float, height: float) -> list[str]:
    """Lines at 0, half and all of the highest value."""
    marks = []
    for value in (0.0, highest / 2, highest):
        y = _y(value, highest, height)
        marks.append(f'<line x1="{left}" x2="{right}" y1="{y}" y2="{y}" stroke="#e6e9ee"/>')
        marks.append(_text(left - 6, y + 4, f"{100 * value:.0f}", "end"))
    return marks


def _heat(shared: Mapping[str, Any]) -> str:
    """Share of the row market's items that the column market sells too, and how many these are."""
    markets, counts, cell, marks = shared["markets"], shared["items"], 62, []
    wide = max(cell, _broadest(markets))
    for i, row in enumerate(markets):
        marks += [_text(wide - 8, i * cell + 64, row, "end"), _text((i + 1.5) * wide, 22, row, "middle")]
        for j in range(len(markets)):
            share = counts[i][j] / counts[i][i] if counts[i][i] else 0.0
            ink, x, y = "#fff" if share > 0.55 else "#1c2430", (j + 1) * wide, i * cell + 30
            square = f'x="{x}" y="{y}" width="{wide - 2}" height="{cell - 2}"'
            marks.append(f'<rect {square} fill="rgba(31,111,235,{share:.3f})" stroke="#d5dae1"/>')
            marks.append(_text(x + wide / 2 - 1, y + 28, f"{100 * share:.0f}%", "middle", ink))
            marks.append(_text(x + wide / 2 - 1, y + 44, f"{counts[i][j]:,}", "middle", ink))
    return _svg(wide * (len(markets) + 1), cell * len(markets) + 34, marks)


def _curves(report: Report) -> str:
    """Validation NDCG@10 by epoch of every system that has epochs."""
    curves: dict[str, list[float]] = {}
    for run in report["runs"]:
        if run.get("curve"):
            curves.setdefault(run["model"], run["curve"])
    if not curves:
        return ""
    longest, highest = max(map(len, curves.values())), _top(max(max(curve) for curve in curves.values()))
    left, width, height = 40, 640, 240
    marks, step = _grid(left, width - 20, highest, height), (width - 60) / max(longest - 1, 1)
    for name, curve in curves.items():
        points = [f"{left + step * epoch:.1f},{_y(value, highest, height)}" for epoch, value in enumerate(curve)]
        style = f'fill="none" stroke="{_colour(report, name)}" stroke-width="1.8"'
        line = f'<polyline points="{" ".join(points)}" {style}>'
        marks.append(f"{line}<title>{escape(title(report, name))}</title></polyline>")
        x, y = points[-1].split(",")
        marks.append(f'<circle cx="{x}" cy="{y}" r="2.5" fill="{_colour(report, name)}"/>')
    marks += [_text(left, height + 34, "1", "middle"), _text(width - 20, height + 34, f"epoch {longest}", "end")]
    return _svg(width, height + 40, marks) + _legend(report, list(curves))


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#1c2430") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="12" fill="{colour}">{escape(text)}</text>'


def _colour(report: Report, name: str) -> str:
    known = dict.fromkeys([_OURS, *report["systems"], *(row["model"] for row in report["means"])])
    return _COLOURS[list(known).index(name) % len(_COLOURS)]


def _broadest(texts: Sequence[str]) -> int:
    """Pixels that the longest text takes, with a gap."""
    return round(_LETTER * max(map(len, texts), default=0)) + 12


def _legend(report: Report, names: Sequence[str]) -> str:
    items = (
        f'<span class=key><i style="background:{_colour(report, name)}"></i>{escape(title(report, name))}</span>'
        for name in names
    )
    return f"<p class=note>{' '.join(items)}</p>"


def _svg(width: float, height: float, marks: Sequence[str]) -> str:
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    return f'<div class=scroll><svg {size} role="img">{"".join(marks)}</svg></div>'
