"""What goes on top of the cosine: a linear model and the two-step walks, each as far as validation wants it.

    score of (user, item) in market m = cosine(u, v) + w_m (x B)_item + t_m (x P)_item

B is of the intra-market side (market_linear.py), P of the inter-market side (two_steps.py); the ablations of Table 3
leave out theirs. Both are linear in the history x, so that one matrix, (w_m B + t_m P) / share_m, is laid beside the
model and served.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy import sparse

from m3rec_spark.config import Train
from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.evaluation.blend import choose_weights
from m3rec_spark.ranking.scorers import LINEAR, CosineScorer, EaseScorer, Scorer, Scores
from m3rec_spark.similarity.market_linear import others_folder, walk_folder
from m3rec_spark.tables import Workspace

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Sum:
    """cosine + w_m (x B)_item with the model and the share that were chosen for each market."""

    cosine: Scorer
    linear: Sequence[EaseScorer]
    chosen: NDArray[np.intp]
    weights: NDArray[np.float32]
    name: str = "m3rec"

    def score(self, arrays: MarketArrays, market: int, users: NDArray[np.int32]) -> Scores:
        """See Scorer."""
        scores, weight = self.cosine.score(arrays, market, users), self.weights[market]
        if not weight:
            return scores
        return np.asarray(scores + weight * self.linear[self.chosen[market]].score(arrays, market, users))


def add_linear(
    settings: Train, workspace: Workspace, folder: Path, arrays: MarketArrays, sample: pa.Table
) -> dict[str, list[float]]:
    """Chooses each market's linear model, its share and that of the walks, and lays them beside the exported model.

    Gives `ease_weights`, the shares w_m; `walk_weights`, the shares t_m; and with linear models of the markets' own
    `linear_others`, the weight of the other markets' shoppers in each. Empty lists for what has no part.
    """
    facts: dict[str, Any] = workspace.facts("linear") if settings.linear == "own" else {"others": []}
    others: list[float] = facts["others"]
    own = bool(others)  # else B of the table `ease`: where pretrain made no model of the markets' own, too
    numbers = list(range(len(others)))
    none = np.zeros(arrays.n_markets, np.float32)
    chosen, weights, walked = none.astype(np.intp), none, none
    cosine, linear, walks = CosineScorer(str(folder)), list[EaseScorer](), None
    if not settings.inter and 0.0 in others:
        numbers = [others.index(0.0)]  # other markets' shoppers are inter-market similarity, too
    if settings.intra and settings.ease_weights:
        table = workspace.folder("linear" if own else "ease")
        places = [others_folder(table, number) for number in numbers] if own else [table]
        linear = [EaseScorer(str(place)) for place in places]
        chosen, weights = choose_weights(cosine, linear, arrays, sample, settings.ease_weights)
    if settings.inter and settings.ease_weights and settings.walk_weights and own and facts["walks"]:
        walks = walk_folder(workspace.folder("linear"))
        base = _Sum(cosine, linear, chosen, weights)
        _, walked = choose_weights(base, [EaseScorer(str(walks))], arrays, sample, settings.walk_weights)
    if linear or walks:
        np.save(folder / "ease_weights.npy", np.where(weights > 0, weights, walked))
    if own and (linear or walks):
        (folder / LINEAR).mkdir()
        for market in np.flatnonzero(weights + walked):
            B = Path(linear[chosen[market]].folder) if weights[market] else None
            _lay(folder / LINEAR, f"market-{market:05d}.npz", B, weights[market], walks, walked[market])
    found = {
        "ease_weights": _typed(weights) if linear else [],
        "walk_weights": _typed(walked) if walks else [],
        "linear_others": [others[numbers[place]] for place in chosen] if linear and own else [],
    }
    log.info(
        "share of the linear score by market: %s, of the two-step walks: %s; weight of the other markets in the "
        "linear score: %s", *found.values(),
    )  # fmt: skip
    return found


def _lay(folder: Path, name: str, B: Path | None, weight: float, walks: Path | None, walked: float) -> None:
    """(w B + t P) over the share that the model names: w, or t where w is 0. B alone or P alone is copied as it is."""
    if B and walks and walked:
        both = sparse.load_npz(B / name) + np.float32(walked / weight) * sparse.load_npz(walks / name)
        sparse.save_npz(folder / name, both.tocsr().astype(np.float32))
    else:
        shutil.copy((B or walks or folder) / name, folder)


def _typed(weights: NDArray[np.float32]) -> list[float]:
    """As they were typed, not as float32 has them."""
    return [round(float(weight), 6) for weight in weights]
