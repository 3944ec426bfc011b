"""May a new model take the place of the one that serves? By NDCG@10 on the test half, market by market.

The test half is used here to decide on one model, not to choose among many: hyper-parameters are chosen on the
validation half only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from m3rec_spark.evaluation.contract import require_same_contract
from m3rec_spark.evaluation.metrics import ALL, MEAN

METRIC, SPLIT = "ndcg_10", "test"


@dataclass(frozen=True)
class Verdict:
    """One comparison: a market's, or the mean's."""

    market: str
    challenger: float
    champion: float
    passed: bool


def verdicts(
    challenger: Mapping[str, Any], champion: Mapping[str, Any], model: str, max_drop: float, min_gain: float
) -> list[Verdict]:
    """Compares two reports (evaluate.json): the mean first, then every market of the champion.

    Args:
        challenger: of the new model.
        champion: of the model that serves.
        model: whose rows count.
        max_drop: how much NDCG@10 of a market may fall.
        min_gain: by how much the mean has to be above the champion's; negative: it may fall by that.

    Raises:
        DataError: they were evaluated under different contracts.
    """
    require_same_contract(challenger["contract"], champion["contract"])
    new, old = (values(report["rows"], model) for report in (challenger, champion))
    markets = [market for market in old if market not in (MEAN, ALL)]
    found = [Verdict(MEAN, new[MEAN], old[MEAN], new[MEAN] >= old[MEAN] + min_gain)]
    return found + [
        Verdict(market, new.get(market, 0.0), old[market], new.get(market, 0.0) >= old[market] - max_drop)
        for market in markets
    ]


def values(rows: Sequence[Mapping[str, Any]], model: str) -> dict[str, float]:
    """Market -> NDCG@10 of the test half, the mean over markets under MEAN."""
    return {
        row["market"]: float(row["value"])
        for row in rows
        if row["model"] == model and row["split"] == SPLIT and row["metric"] == METRIC
    }
