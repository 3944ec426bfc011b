"""MMoE (Ma et al. 2018, KDD, eq. 6-7), a task for every market.

    f_m(x) = sum_e g_m(x)_e f_e(x),   g_m(x) = softmax(W_m x),   y = h_m' [p^G * q^G ; f_m(x)],   x = [p; q]

All markets share the experts f_e, towers on the pair as in NeuMF, whose product of factors is kept beside them.
Cost: that of E towers a pair.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from m3rec_spark.models.layout import Layout
from m3rec_spark.models.pair_loss import PairModel, Vectors
from m3rec_spark.models.tower import PairLinear, Tower, weighted_product


class MMoE(PairModel):
    """Args: dimension d; experts E; widths of their towers; dropout."""

    def __init__(self, layout: Layout, dimension: int, widths: Sequence[int], dropout: float, experts: int) -> None:
        super().__init__(layout, dimension)
        self.experts = nn.ModuleList(Tower(dimension, widths, dropout) for _ in range(experts))
        markets = range(layout.n_markets)
        self.gates = nn.ModuleList(PairLinear(dimension, experts) for _ in markets)
        self.outputs = nn.ModuleList(nn.Linear(widths[-1], 1) for _ in markets)
        self.product_weights = nn.Parameter(torch.ones(layout.n_markets, dimension))

    def forward(self, market: int, gmf: Vectors, mlp: Vectors) -> Tensor:
        """(B, K) logits."""
        product = weighted_product(gmf, self.product_weights[market])
        user, item = mlp
        gates = torch.softmax(self.gates[market](user, item), dim=2)
        mixed = sum(gates[..., e, None] * expert(user, item) for e, expert in enumerate(self.experts))
        logits: Tensor = product + self.outputs[market](mixed)[..., 0]
        return logits
