"""A report of compare by hand: two contracts, two markets, three systems, for the tests of tables and page."""

from __future__ import annotations

from typing import Any

SYSTEMS = {  # name -> title, family
    "ease": ("EASE^R", "Mix"),
    "neumf": ("NeuMF", "Mix"),
    "m3rec": ("M3Rec", "Multi"),
    "m3rec_without_both": ("M3Rec w/o both", "Multi"),
}
GUEST = "theirs <b>&"  # a table of somebody else's scores
MARKETS = ("a & b", "<de>")
VALUES = {  # in the two markets and on average; spread and seeds
    "ease": (0.3, 0.2, 0.25, 0.0, 1),
    "neumf": (0.1, 0.15, 0.125, 0.004, 3),
    "m3rec": (0.4256, 0.3, 0.3628, 0.0123, 5),
    "m3rec_without_both": (0.35, 0.25, 0.3, 0.002, 5),
    GUEST: (0.5, 0.04, 0.27, 0.0, 1),
}
TESTS = {  # other -> market -> (difference, p after Holm)
    "ease": {"a & b": (0.1256, 0.0004), "<de>": (0.1, 0.03)},
    "neumf": {"a & b": (0.3256, 0.004), "<de>": (0.15, 0.05)},
    "m3rec_without_both": {"a & b": (0.0756, 0.2)},
    GUEST: {"a & b": (-0.0744, 0.01), "<de>": (0.26, None)},
}


def small_report() -> dict[str, Any]:
    """Contract standard as above; under paper-like every value is half of that and nothing was tested."""
    report: dict[str, Any] = {"means": [], "tests": [], "groups": []}
    report["systems"] = {name: {"title": title, "family": family} for name, (title, family) in SYSTEMS.items()}
    report["contracts"] = [
        {"name": name, "sha256": digit * 64, "counts": {"test": 1234}, "negatives": 99, "seen": seen}
        for name, digit, seen in (("standard", "a", "excluded"), ("paper-like", "b", "included"))
    ]
    for contract, factor in (("standard", 1.0), ("paper-like", 0.5)):
        for model, (*values, spread, seeds) in VALUES.items():
            for market, value in zip((*MARKETS, "mean"), values, strict=True):
                named = {"contract": contract, "model": model, "market": market, "seeds": seeds, "n": 100}
                found = {"value": factor * value, "spread": spread, "half_width": 0.05}
                report["means"] += [
                    {**named, **found, "split": split, "metric": metric}
                    for metric in ("mrr", "ndcg_10", "hr_10", "full_ndcg_10", "full_mrr")
                    for split in ("test", "all")
                ]
    report["means"] = [  # NeuMF has no users in <de> under standard
        r for r in report["means"] if (r["contract"], r["model"], r["market"]) != ("standard", "neumf", "<de>")
    ]
    report["tests"] = [
        {
            "contract": "standard",
            "metric": "mrr",
            "other": other,
            "market": market,
            "users": 100,
            "difference": d,
            "p_holm": p,
        }
        for other, markets in TESTS.items()
        for market, (d, p) in markets.items()
    ]
    report["tests"] += [
        {
            "contract": "standard", "metric": "ndcg_10", "other": "ease", "market": market, "users": users,
            "difference": gain, "low": gain - 0.01, "high": gain + 0.01, "p_holm": p, "p_wilcoxon": p,
        }
        for market, users, gain, p in (
            ("a & b", 1200, 0.0123, 0.2), ("<de>", 34, -0.02, None), ("all", 1234, 0.01, 0.07),
        )
    ]  # fmt: skip
    report["tests"] = [{**test, "runner_up": test["other"] == "ease"} for test in report["tests"]]
    report["unscored"] = {f"standard/{GUEST}": 0, f"paper-like/{GUEST}": 1234}
    for kind, group, market, model, value, n in (
        ("item", "overlapped", "a & b", "m3rec", 0.5, 70),
        ("item", "overlapped", "<de>", "m3rec", 0.25, 8),
        ("item", "overlapped", "a & b", "ease", 0.4567, 70),
        ("item", "market-specific", "<de>", "ease", 0.125, 3),
        ("history", "10 and more", "a & b", "m3rec", 0.5, 7),
        ("history", "5-9 items", "a & b", "m3rec", 0.5, 7),
        ("history", "1-4 items", "a & b", "m3rec", 0.5, 7),
        ("popularity", "5-19 pairs", "a & b", "m3rec", 0.5, 7),
        ("popularity", "20 pairs and more", "a & b", "m3rec", 0.5, 7),
        ("popularity", "cold", "a & b", "m3rec", 0.0, 7),
    ):
        row = {"contract": "standard", "kind": kind, "group": group, "metric": "mrr", "n": n}
        row["half_width"] = None if n == 3 else 0.0312
        report["groups"].append({**row, "market": market, "model": model, "value": value})
    report["transfer"] = [
        {"helper": helper, "market": market, "difference": gain, "low": low, "high": high, "p_holm": p}
        for helper, market, gain, low, high, p in (
            ("<de>", "a & b", 0.0312, 0.01, 0.052, 0.004),
            ("others", "a & b", 0.02, -0.01, 0.05, 0.06),
            ("others", "<de>", None, None, None, None),  # it has no test user
            ("a & b", "<de>", -0.011, -0.02, -0.002, 0.01),
        )
    ]
    report["transfer_skipped"], report["unknown"] = None, {GUEST: 0}
    report["shared_items"] = {"markets": list(MARKETS), "items": [[1000, 250], [250, 500]]}
    report["runs"] = [
        {"model": "ease"},
        {"model": "m3rec", "curve": [0.1, 0.2, 0.4]},
        {"model": "m3rec", "curve": [0.9]},  # another seed: not drawn
        {"model": "neumf", "curve": [0.2, 0.1]},
    ]
    report["trials"] = [
        {"model": "ease", "settings": {"lambda_f": 30.0}, "valid_ndcg_10": 0.25126, "seconds": 1.6},
        {"model": "m3rec", "settings": {}, "valid_ndcg_10": 0.4, "seconds": 61.2, "stopped_by": "patience"},
        {"model": "m3rec", "settings": {"dropout": 0.9}, "seconds": 3.4, "failed": "the loss became nan in epoch 1"},
        {"model": "neumf", "settings": {"widths": [8, 4], "of": "<a>"}, "valid_ndcg_10": 0.1, "seconds": 0.2},
    ]
    return report
