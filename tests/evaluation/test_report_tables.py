"""Cells of the tables of a report made by hand."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
from small_report import GUEST, small_report

from m3rec_spark.evaluation.tables import (
    aligned,
    group_table,
    markets_of,
    names_of,
    remarks,
    runner_up_table,
    stars,
    system_table,
    table_2,
    thin_markets,
    transfer_table,
    trial_table,
    unscored_table,
)

REPORT = small_report()


def test_rows_and_columns() -> None:
    assert markets_of(REPORT) == ["<de>", "a & b", "mean"]
    assert names_of(REPORT, "standard") == ["ease", "neumf", "m3rec", GUEST]  # the variant has a table of its own


def test_system_table() -> None:
    table = system_table(REPORT, "standard", "mrr", [*names_of(REPORT, "standard"), "m3rec_without_both", "absent"])
    assert table == [
        ["system", "data", "seeds", "<de>", "a & b", "mean"],
        ["EASE^R", "Mix", "1", "20.0*", "30.0***", "25.0"],
        ["NeuMF", "Mix", "3", "-", "10.0±0.4**", "12.5±0.4"],
        ["M3Rec", "Multi", "5", "30.0±1.2", "42.6±1.2", "36.3±1.2"],
        [GUEST, "external", "1", "4.0", "50.0+", "27.0"],
        ["M3Rec w/o both", "Multi", "5", "25.0±0.2", "35.0±0.2", "30.0±0.2"],
        ["absent", "external", "0", "-", "-", "-"],
    ]


def test_the_other_contract_has_its_own_values_and_no_stars() -> None:
    table = system_table(REPORT, "paper-like", "mrr", ["ease", "neumf"])
    assert [row[3:] for row in table[1:]] == [["10.0", "15.0", "12.5"], ["7.5±0.4", "5.0±0.4", "6.2±0.4"]]


@pytest.mark.parametrize(
    ("difference", "p", "mark"),
    [
        (0.1, 0.0009, "***"), (0.1, 0.001, "**"), (0.1, 0.01, "*"), (0.1, 0.05, ""), (0.1, None, ""),
        (-0.1, 0.0009, "+"), (-0.1, 0.049, "+"), (-0.1, 0.05, ""),
    ],
)  # fmt: skip
def test_stars(difference: float, p: float | None, mark: str) -> None:
    test = {"contract": "c", "metric": "mrr", "other": "x", "market": "m", "difference": difference, "p_holm": p}
    assert stars({"tests": [test]}, "c", "mrr", "x", "m") == mark
    for other in (("d", "mrr", "x", "m"), ("c", "hr_10", "x", "m"), ("c", "mrr", "y", "m"), ("c", "mrr", "x", "n")):
        assert stars({"tests": [test]}, *other) == ""


def test_runner_up_table() -> None:
    assert runner_up_table(small_report(), "standard", "ndcg_10")[1:] == [
        ["EASE^R", "a & b", "1,200", "+1.2 [+0.2, +2.2]", "2.0e-01", "2.0e-01"],
        ["EASE^R", "<de>", "34", "-2.0 [-3.0, -1.0]", "-", "-"],
        ["EASE^R", "all", "1,234", "+1.0 [+0.0, +2.0]", "7.0e-02", "7.0e-02"],
    ]
    assert len(runner_up_table(small_report(), "paper-like", "ndcg_10")) == 1


def test_tables_of_scores_that_leave_candidates_out() -> None:
    assert unscored_table(small_report())[1:] == [["paper-like", GUEST, "1,234"]]


def test_group_table() -> None:
    assert group_table(REPORT, "standard", "item", ["m3rec", "ease", "neumf"]) == [
        ["group", "system", "<de>", "a & b"],
        ["market-specific", "EASE^R", "12.5 (3)", "-"],
        ["overlapped", "M3Rec", "25.0 ± 3.1 (8)", "50.0 ± 3.1 (70)"],
        ["overlapped", "EASE^R", "-", "45.7 ± 3.1 (70)"],
    ]
    assert group_table(REPORT, "paper-like", "item", ["m3rec"]) == [["group", "system"]]


def test_groups_are_in_the_order_of_their_numbers() -> None:
    of = {kind: group_table(REPORT, "standard", kind, ["m3rec"])[1:] for kind in ("history", "popularity")}
    assert [row[0] for row in of["history"]] == ["1-4 items", "5-9 items", "10 and more"]
    assert [row[0] for row in of["popularity"]] == ["cold", "5-19 pairs", "20 pairs and more"]


def test_transfer_table() -> None:
    assert transfer_table(REPORT) == [
        ["with the data of", "for <de>", "for a & b"],
        ["others", "-", "+2.0 [-1.0, +5.0]"],
        ["<de>", "-", "+3.1 [+1.0, +5.2]*"],
        ["a & b", "-1.1 [-2.0, -0.2]*", "-"],
    ]


def test_text() -> None:
    text = table_2(REPORT)
    heads = [line for line in text.splitlines() if "test half" in line]
    assert heads == [
        f"{metric} x 100, test half, contract {contract}"
        for contract in ("standard", "paper-like")
        for metric in ("NDCG@10", "MRR@10", "HR@10", "NDCG@10 among all items of the market,")
    ]
    first = text.split("\n\n")[1].splitlines()
    assert first[1:] == [
        "system          data      seeds  <de>      a & b       mean",
        "EASE^R          Mix       1      20.0*     30.0***     25.0",
        "NeuMF           Mix       3      -         10.0±0.4**  12.5±0.4",
        "M3Rec           Multi     5      30.0±1.2  42.6±1.2    36.3±1.2",
        "theirs <b>&     external  1      4.0       50.0+       27.0",
        "M3Rec w/o both  Multi     5      25.0±0.2  35.0±0.2    30.0±0.2",
    ]


def test_the_page_of_the_documents_says_what_the_text_says() -> None:
    """A chosen trial that is a run too counts once: 1.6 + 61.2 + 3.4 + 0.2 + 293.6 s are 0.1 hours."""
    script = Path(__file__).parents[2] / "scripts" / "comparison_page.py"
    page = runpy.run_path(str(script))["page"]
    report = small_report()
    report["settings"] = {"trials": 3, "trial_seconds": 60.0, "run_seconds": 150.0, "validation_users": 4000, "seed": 7}
    report["trials"] = [{**trial, "seed": 7} for trial in report["trials"]]
    cut = {"stopped_by": "seconds", "best_epoch": 4, "epochs": 4}
    report["runs"] = [report["trials"][0], {**report["trials"][3], "seed": 9, "seconds": 293.6, **cut}]
    text = page(report, "m3rec compare --workspace w")
    assert "0.1 hours of training, 5 runs" in text
    assert "```\nm3rec compare --workspace w\n```" in text
    assert "Seeds\n7 to 9" in text
    assert "A trial of a network had 60 s of training, the chosen settings (or the only ones) 150 s a seed" in text
    assert "(runs): NeuMF (1).\n" in text
    assert "| EASE^R | Mix | 1 | 20.0\\* | 30.0\\*\\*\\* | 25.0 |" in text
    assert f"| paper-like | {GUEST} | 1,234 |" in text
    assert "| others | - | +2.0 [-1.0, +5.0] |" in text
    report["settings"]["trial_seconds"] = 150.0
    assert "Every run of a network, a trial too, had 150 s of training, and" in page(report, "")
    report |= {"transfer": [], "transfer_skipped": "needs 80 GB", "unknown": {GUEST: 3}}
    assert "| left out |\n|---|\n| needs 80 GB |\n" in page(report, "")
    assert f"3 scores of '{GUEST}' are of" in page(report, "")


def test_aligned() -> None:
    assert aligned([["a", "bcd", "e"], ["fgh", "", "i"], ["j", "k", ""]]) == ["a    bcd  e", "fgh       i", "j    k"]


def test_trials_are_listed_with_their_settings_and_cost() -> None:
    trials = [
        {"model": "ease", "settings": {}, "valid_ndcg_10": 0.12345, "seconds": 1.6},
        {
            "model": "neumf", "settings": {"dimension": 8, "widths": [4, 2]}, "valid_ndcg_10": 0.5, "seconds": 0.2,
            "stopped_by": "seconds",
        },
        {"model": "neumf", "settings": {}, "seconds": 1.4, "failed": "the loss became inf"},
    ]  # fmt: skip
    assert trial_table({**REPORT, "trials": trials})[1:] == [
        ["EASE^R", "as configured", "12.35", "2", "-"],
        ["NeuMF", "dimension=8, widths=[4, 2]", "50.00", "0", "seconds"],
        ["NeuMF", "as configured", "-", "1", "the loss became inf"],
    ]


def test_what_the_clock_cut_while_it_was_learning_is_named_and_marked() -> None:
    run = {"model": "neumf", "stopped_by": "seconds", "best_epoch": 4, "epochs": 4}
    others = [{"model": "ease"}, {**run, "best_epoch": 3}, {**run, "model": "m3rec", "stopped_by": "patience"}]
    assert "Ended by the clock" not in table_2({**REPORT, "runs": others})
    pretrained = {"model": "neumf", "stopped_by": "seconds", "best_epoch": 1, "epochs": 2, "pretrained": run}
    assert "(runs): NeuMF (1).\n" in table_2({**REPORT, "runs": [pretrained]})
    report = {**REPORT, "runs": [run, *others, run]}
    told = "† Ended by the clock at their best epoch, so that more seconds might bring more (runs): NeuMF (2)."
    assert told in remarks(report)
    assert told in table_2(report)
    titles = [row[0] for row in system_table(report, "standard", "mrr", ["ease", "neumf", "m3rec"])]
    assert titles == ["system", "EASE^R", "NeuMF †", "M3Rec"]


def test_runs_that_diverged_are_counted() -> None:
    assert remarks(REPORT) == ["Runs whose training diverged, left out: M3Rec (1)."]
    whole = [trial for trial in REPORT["trials"] if "failed" not in trial]
    assert remarks({**REPORT, "trials": whole}) == []


def test_markets_of_too_few_users_are_named() -> None:
    assert thin_markets(REPORT) == []
    assert "not tested" not in table_2(REPORT)
    report = small_report()
    report["shared_items"]["markets"] = [*report["shared_items"]["markets"], "nobody"]
    for row in report["means"]:
        if row["market"] == "<de>":
            row["n"] = 9
    for test in report["tests"]:
        if test["market"] == "<de>":
            test |= {"users": 9, "low": None, "high": None, "p_holm": None}
    assert thin_markets(report) == ["<de> (9)", "nobody (0)"]
    assert "Fewer than 10 test users, not tested and not in the mean: <de> (9), nobody (0).\n" in table_2(report)
    assert runner_up_table(report, "standard", "ndcg_10")[2] == ["EASE^R", "<de>", "9", "-2.0 (untested)", "-", "-"]


def test_scores_of_unknown_ids_are_counted() -> None:
    assert "that the workspace has not" not in table_2(REPORT)
    told = f"1,234 scores of '{GUEST}' are of a market, user or item that the workspace has not"
    assert told in table_2({**REPORT, "unknown": {GUEST: 1234}})


def test_the_legend_needs_m3rec() -> None:
    assert "M3Rec is better" in table_2(REPORT)
    assert "M3Rec is better" not in table_2({**REPORT, "tests": []})


def test_an_audit_that_was_left_out_says_why() -> None:
    report = {**small_report(), "transfer": [], "transfer_skipped": "needs 80 GB"}
    assert "who helps whom (EASE^R, NDCG@10 x 100)\nleft out: needs 80 GB\n" in table_2(report)
    assert "left out: needs" not in table_2(REPORT)
