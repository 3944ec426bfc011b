"""The page of compare: its cells, figures and escapes; and in a browser, where there is one."""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib import image
from small_report import GUEST, MARKETS, VALUES, small_report

from m3rec_spark.evaluation import compare_html
from m3rec_spark.evaluation.compare_html import compare_page
from m3rec_spark.evaluation.tables import runner_up_table, system_table, unscored_table

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Reader(HTMLParser):
    """Tables as lists of rows, headings, all tags and attributes; complains about a tag closed out of order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.headings: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag in ("h1", "h2", "h3"):
            self.headings.append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data
        elif self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings[-1] += data


PAGE = compare_page(small_report())
READ = Reader(PAGE)


def figures(page: str = PAGE) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg .*?</svg>", page, re.DOTALL)]


def test_every_tag_is_closed_in_order() -> None:
    assert READ.open == []
    assert PAGE.startswith("<!doctype html>")


def test_nothing_is_fetched_and_nothing_runs() -> None:
    assert "http:" not in PAGE
    assert "https:" not in PAGE
    assert not {"script", "link", "iframe", "img", "object", "embed", "base"} & {tag for tag, _ in READ.tags}
    names = {name for _, attributes in READ.tags for name in attributes}
    assert not {name for name in names if name.startswith("on")} | ({"src", "href", "srcset", "xlink:href"} & names)
    assert "url(" not in PAGE
    assert "@import" not in PAGE


def test_tables_are_those_of_the_report() -> None:
    report = small_report()
    names = ["ease", "neumf", "m3rec", GUEST]
    for first, contract, table_3 in ((0, "standard", 5), (9, "paper-like", 13)):  # only standard has a runner-up
        for place, metric in enumerate(("mrr", "ndcg_10", "hr_10", "full_ndcg_10")):
            assert READ.tables[first + place] == system_table(report, contract, metric, names)
        variants = [row[:3] for row in READ.tables[table_3]]
        assert variants == [["system", "data", "seeds"], ["M3Rec", "Multi", "5"], ["M3Rec w/o both", "Multi", "5"]]
    assert READ.tables[0][1] == ["EASE^R", "Mix", "1", "20.0*", "30.0***", "25.0"]
    assert [len(table) - 1 for table in READ.tables[6:9]] == [3, 3, 3]  # groups: item, popularity, history
    assert READ.tables[4] == runner_up_table(report, "standard", "ndcg_10")
    assert READ.tables[14] == unscored_table(report)
    assert READ.tables[15][1] == ["others", "-", "+2.0 [-1.0, +5.0]"]
    assert READ.tables[16] == [
        ["system", "settings", "validation NDCG@10 x 100", "seconds", "stopped by"],
        ["EASE^R", "lambda_f=30.0", "25.13", "2", "-"],
        ["M3Rec", "as configured", "40.00", "61", "patience"],
        ["M3Rec", "dropout=0.9", "-", "3", "the loss became nan in epoch 1"],
        ["NeuMF", "widths=[8, 4], of=<a>", "10.00", "0", "-"],
    ]
    assert len(READ.tables) == 17  # paper-like has no groups, and no headings for them
    assert [text for text in READ.headings if text.startswith("Contract")] == [
        "Contract standard: Table 2",
        "Contract paper-like: Table 2",
    ]


def test_rows_of_ours_are_marked() -> None:
    marked = re.findall(r"<tr class=ours><td[^>]*>([^<]*)</td><td[^>]*>([^<]*)", PAGE)
    assert marked.count(("M3Rec", "Multi")) == 2 * 5
    assert {second for _, second in marked} == {"Multi", "M3Rec", "as configured", "dropout=0.9"}


def test_a_mark_of_the_clock_leaves_our_row_ours() -> None:
    report = small_report()
    report["runs"] = [{"model": "m3rec", "stopped_by": "seconds", "best_epoch": 2, "epochs": 2}]
    assert "<tr class=ours><td class=left>M3Rec †</td>" in compare_page(report)


def test_what_could_not_be_tested_is_said() -> None:
    report = {**small_report(), "transfer": [], "transfer_skipped": "needs 80 GB & more"}
    report["means"] = [{**row, "n": 3 if row["market"] == "<de>" else 90} for row in report["means"]]
    page = compare_page(report)
    assert "<h2>Who helps whom</h2><p>Left out: needs 80 GB &amp; more</p>" in page
    assert "Fewer than 10 test users, not tested and not in the mean: &lt;de&gt; (3)." in page
    unknown = compare_page({**small_report(), "unknown": {GUEST: 7}})
    assert "7 scores of 'theirs &lt;b&gt;&amp;' are of a market, user or item" in unknown.replace("&#x27;", "'")
    assert "Left out:" not in PAGE
    assert "not tested" not in PAGE


def test_names_are_escaped() -> None:
    rest = PAGE
    for name in (*MARKETS, GUEST, "<a>"):
        assert name not in PAGE.replace("<html lang=en>", "")
        escaped = name.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
        assert escaped in PAGE
        rest = rest.replace(escaped, "")
    assert "theirs" not in rest
    assert not {"b", "de"} & {tag for tag, _ in READ.tags}
    report = small_report()
    report["systems"]["ease"]["title"] = "</table><script>alert(1)</script>"
    report["contracts"][0]["name"] = "<i>"
    for rows in ("means", "tests", "groups"):
        for row in report[rows]:
            row["contract"] = "<i>" if row["contract"] == "standard" else row["contract"]
    page = compare_page(report)
    figures(page)
    assert "script" not in {tag for tag, _ in Reader(page).tags}
    assert "<i>:" not in page
    assert "Contract &lt;i&gt;" in page


def test_bars_by_hand() -> None:
    bars, other, *_ = figures()
    rects, whiskers = bars.findall("rect"), [line for line in bars.findall("line") if line.get("x1") == line.get("x2")]
    assert len(rects) == len(whiskers) == 4 + 3 + 4  # NeuMF has no value in <de>
    assert len(other.findall("rect")) == 12
    assert [text.text for text in bars.findall("text")] == ["0", "30", "60", "<de>", "a & b", "mean"]  # 55, rounded up
    told = [rect.find("title").text for rect in rects]
    assert told[0] == "EASE^R, <de>: 20.0 ± 5.0"
    assert told[5] == "M3Rec, a & b: 42.6 ± 5.0"
    first = rects[0]  # 0.2 of 0.6 at a height of 220, 16 from the top
    assert float(first.get("y")) == pytest.approx(16 + 220 * (1 - 0.2 / 0.6), abs=0.1)
    assert float(first.get("height")) == pytest.approx(220 * 0.2 / 0.6, abs=0.1)
    guest = whiskers[2]  # in <de>: from 0.09 down to the axis, though 0.04 - 0.05 is below it
    assert float(guest.get("y1")) == 16 + 220
    assert float(guest.get("y2")) == pytest.approx(16 + 220 * (1 - 0.09 / 0.6), abs=0.1)


def test_a_system_has_one_colour() -> None:
    bars, *_, curves = figures()
    by_name = {rect.find("title").text.split(",")[0]: rect.get("fill") for rect in bars.findall("rect")}
    assert len(set(by_name.values())) == 4
    for line in curves.findall("polyline"):
        assert by_name[line.find("title").text] == line.get("stroke")


def test_shared_items_by_hand() -> None:
    heat = figures()[2]
    shares = [rect.get("fill") for rect in heat.findall("rect")]
    assert [float(fill.split(",")[-1][:-1]) for fill in shares] == [1.0, 0.25, 0.5, 1.0]
    texts = [text.text for text in heat.findall("text")]
    assert texts == ["a & b", "a & b", "100%", "1,000", "25%", "250", "<de>", "<de>", "50%", "250", "100%", "500"]


def test_curves_by_hand() -> None:
    lines = figures()[3].findall("polyline")
    points = {line.find("title").text: line.get("points") for line in lines}
    left, middle, right = 40.0, 330.0, 620.0  # three epochs; 0.4 is the highest, 240 high
    assert points == {
        "M3Rec": f"{left},196.0 {middle},136.0 {right},16.0",
        "NeuMF": f"{left},136.0 {middle},196.0",
    }


def inside(figure: ElementTree.Element) -> None:
    """Every text, at 7.5 pixels a letter, lies in the figure and overlaps none on its line."""
    _, _, width, height = map(float, figure.get("viewBox", "").split())
    lines: dict[str, list[tuple[float, float]]] = {}
    for text in figure.findall("text"):
        x, length = float(text.get("x", "")), 7.5 * len(text.text or "")
        start = x - {"start": 0.0, "middle": length / 2, "end": length}[text.get("text-anchor", "start")]
        assert start >= 0
        assert start + length <= width
        assert 10 <= float(text.get("y", "")) <= height
        lines.setdefault(text.get("y", ""), []).append((start, start + length))
    for spans in lines.values():
        ordered = sorted(spans)
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(ordered))


def with_long_names() -> dict[str, Any]:
    """The report with 9 markets more, of long names, and 12 systems more."""
    report = small_report()
    long = [f"the market of country {number}" for number in range(9)]
    more = {f"system {number}": f"System number {number}" for number in range(12)}
    report["systems"] |= {name: {"title": title, "family": "Mix"} for name, title in more.items()}
    first = [row for row in report["means"] if row["market"] == MARKETS[0] and row["model"] in VALUES]
    report["means"] += [{**row, "market": market} for row in first for market in long]
    report["means"] += [{**row, "model": name} for row in first if row["model"] == "ease" for name in more]
    counts = np.full((11, 11), 7)
    report["shared_items"] = {"markets": [*MARKETS, *long], "items": (counts + np.diag([5] * 11)).tolist()}
    report["runs"] += [{"model": name, "curve": [0.1, 0.3]} for name in more]
    return report


def test_texts_of_the_figures_have_room() -> None:
    for page in (PAGE, compare_page(with_long_names())):
        for figure in figures(page):
            inside(figure)


def test_seventeen_systems_have_seventeen_colours() -> None:
    bars = figures(compare_page(with_long_names()))[0]
    by_name = {rect.find("title").text.split(",")[0]: rect.get("fill") for rect in bars.findall("rect")}
    assert len(by_name) == len(set(by_name.values())) == 4 + 12


def test_a_report_of_closed_forms_alone_has_no_curves() -> None:
    report = small_report()
    report["runs"] = [{"model": "ease"}]
    report["trials"] = report["tests"] = []
    assert len(figures(compare_page(report))) == 3


@pytest.fixture(scope="module")
def browser() -> str:
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"no browser on PATH ({', '.join(names)}): Debian has it as the package chromium")
    return found


def shot(browser: str, page: str, folder: Path) -> np.ndarray:
    """(2400, 1200, 3) what the browser shows of the page."""
    (folder / "page.html").write_text(page, encoding="utf-8")
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=1200,2400"]
    files = [f"--user-data-dir={folder / 'profile'}", f"--screenshot={folder / 'page.png'}"]
    command = [browser, *options, *files, (folder / "page.html").as_uri()]
    subprocess.run(command, timeout=120, check=True, capture_output=True)
    return (255 * image.imread(folder / "page.png")[:, :, :3]).round().astype(int)


def test_a_browser_shows_the_page(browser: str, tmp_path: Path) -> None:
    pixels = shot(browser, PAGE, tmp_path)
    assert pixels.shape[1] == 1200
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    assert len(colours) > 50
    assert counts.max() < 0.99 * counts.sum()
    shown = {tuple(colour) for colour in colours.tolist()}
    assert (0x1F, 0x6F, 0xEB) in shown  # the bars of M3Rec: the style sheet and the figures have been understood
    assert (0xEA, 0xF3, 0xFF) in shown  # its row
    blank, _ = np.unique(shot(browser, "<!doctype html>", tmp_path).reshape(-1, 3), axis=0, return_counts=True)
    assert len(blank) == 1


@pytest.mark.parametrize(
    ("highest", "top"), [(0.0, 0.02), (0.02, 0.02), (0.03, 0.04), (0.05, 0.1), (0.4, 0.4), (0.41, 0.5), (0.95, 1.0)]
)
def test_an_axis_ends_at_a_round_number(highest: float, top: float) -> None:
    assert compare_html._top(highest) == top
