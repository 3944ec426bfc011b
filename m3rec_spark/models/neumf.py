"""NeuMF (He et al. 2017, arXiv:1708.05031, eq. 12), on the merged data of all markets.

    y_ui = h' [p_u^G * q_i^G ; phi([p_u^M; q_i^M])]

GMF and MLP have vectors of their own. Cost: that of the tower (tower.py), and 2 d flops a pair.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from m3rec_spark.models.layout import Layout
from m3rec_spark.models.pair_loss import PairModel, Vectors, whole_batch
from m3rec_spark.models.pairs import Pairs
from m3rec_spark.models.tower import Tower, weighted_product


class NeuMF(PairModel):
    """Args: dimension d of all four tables; widths of the tower; dropout between its layers."""

    def __init__(self, layout: Layout, dimension: int, widths: Sequence[int], dropout: float) -> None:
        super().__init__(layout, dimension)
        self.tower = Tower(dimension, widths, dropout)
        self.product_weights = nn.Parameter(nn.init.ones_(torch.empty(dimension)))
        self.output = nn.Linear(widths[-1], 1)

    def forward(self, market: int, gmf: Vectors, mlp: Vectors) -> Tensor:
        """(B, K) logits; the market makes no difference."""
        product = weighted_product(gmf, self.product_weights)
        logits: Tensor = product + self.output(self.tower(*mlp))[..., 0]
        return logits

    def loss(self, pairs: Pairs) -> Tensor:
        """Cross-entropy, mean over the pairs: of all markets at once."""
        return self.market_loss(0, *self.factors(*whole_batch(pairs))) / len(pairs.rows)
