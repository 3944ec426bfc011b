from __future__ import annotations

from typing import Any

import pytest

from m3rec_spark.errors import DataError
from m3rec_spark.evaluation.gate import Verdict, values, verdicts


def report(figures: dict[str, float], sha256: str = "x") -> dict[str, Any]:
    """The figures, and zeros for whatever else a report has."""
    counts = ("m3rec", "test", "ndcg_10")
    kinds = [counts, ("ease", "test", "ndcg_10"), ("m3rec", "valid", "ndcg_10"), ("m3rec", "test", "mrr")]
    rows = [
        {"model": kind[0], "market": market, "split": kind[1], "metric": kind[2], "value": value * (kind == counts)}
        for market, value in figures.items()
        for kind in kinds
    ]
    return {"contract": {"sha256": sha256}, "rows": rows}


CHAMPION = {"M1": 0.5, "M2": 0.3, "mean": 0.4, "all": 0.45}


def passed(challenger: dict[str, float], max_drop: float = 0.01, min_gain: float = 0.0) -> dict[str, bool]:
    found = verdicts(report(challenger), report(CHAMPION), "m3rec", max_drop, min_gain)
    return {verdict.market: verdict.passed for verdict in found}


def test_values_are_those_of_the_test_half() -> None:
    assert values(report(CHAMPION)["rows"], "m3rec") == CHAMPION


def test_mean_and_markets() -> None:
    assert passed({**CHAMPION, "all": 0.0}) == {"mean": True, "M1": True, "M2": True}
    assert passed({"M1": 0.6, "M2": 0.28, "mean": 0.44}) == {"mean": True, "M1": True, "M2": False}
    assert passed({"M1": 0.6, "M2": 0.295, "mean": 0.44}) == {"mean": True, "M1": True, "M2": True}
    assert passed({"M1": 0.49, "M2": 0.3, "mean": 0.395}, max_drop=0.02) == {"mean": False, "M1": True, "M2": True}
    assert passed({"M1": 0.5, "M2": 0.3, "mean": 0.4}, min_gain=0.01)["mean"] is False


def test_a_market_that_is_gone_has_dropped() -> None:
    found = verdicts(report({"M1": 0.9, "mean": 0.9}), report(CHAMPION), "m3rec", 0.01, 0.0)
    assert found[2] == Verdict("M2", 0.0, 0.3, False)


def test_other_contracts_are_refused() -> None:
    with pytest.raises(DataError, match="different evaluation contracts"):
        verdicts(report(CHAMPION, "x"), report(CHAMPION, "y"), "m3rec", 0.01, 0.0)
