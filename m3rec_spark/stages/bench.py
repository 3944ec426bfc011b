"""What every system of a comparison is trained on, and what a recipe gives back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from m3rec_spark.config import Config
from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.evaluation.validation import Validator
from m3rec_spark.similarity import ease
from m3rec_spark.similarity.gram import dense_gram
from m3rec_spark.tables import Workspace

Settings = Mapping[str, Any]
Facts = dict[str, Any]
JUDGED = "valid_ndcg_10"  # what a recipe tells of its model on the sample, if it knows


@dataclass(frozen=True)
class Bench:
    """What all systems are trained on."""

    config: Config
    workspace: Workspace
    data_key: str
    """Provenance key of what prepare published."""
    arrays: MarketArrays
    sample: pa.Table
    """Rows of CANDIDATES of the validation half: all that a system may look at."""
    market_ids: dict[int, str]
    device: torch.device
    seconds: float = math.inf
    """Training time of a network."""

    def validator(self) -> Validator:
        """Of the sample."""
        return Validator(self.arrays, self.sample, self.market_ids)

    def gram(self, weights: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """A = sum_m w_m A_m, dense with its lower half, after a check that it fits."""
        ease.plan(self.arrays.n_items, self.config.ease.memory_gb)
        given = np.ones(self.arrays.n_markets) if weights is None else weights
        return dense_gram(self.workspace.read_arrow("gram").to_batches(), self.arrays.n_items, given)
