"""Cross-Stitch (Misra et al. 2016, CVPR, eq. 1), a NeuMF tower for every market.

    h_m^(l+1) = relu(W_m^l sum_k alpha_mk^l h_k^l),   y = h_m' [p^G * q^G ; h_m^L]

The towers of all M markets see the pair; after every layer a unit alpha^l (M, M) mixes what they hold. alpha starts
near the identity, so that each market begins as it would alone. Cost: that of M towers a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3rec_spark.models.layout import Layout
from m3rec_spark.models.pair_loss import PairModel, Vectors
from m3rec_spark.models.tower import ListDropout, PairLinear, weighted_product

_OWN = 0.9  # of alpha at the start; the other markets share the rest


class CrossStitch(PairModel):
    """Args: dimension d; widths of each tower; dropout."""

    def __init__(self, layout: Layout, dimension: int, widths: Sequence[int], dropout: float) -> None:
        super().__init__(layout, dimension)
        M = layout.n_markets
        self.first = nn.ModuleList(PairLinear(dimension, widths[0]) for _ in range(M))
        self.rest = nn.ModuleList(nn.ModuleList(nn.Linear(a, b) for _ in range(M)) for a, b in pairwise(widths))
        start = torch.full((M, M), (1 - _OWN) / max(M - 1, 1))
        start.fill_diagonal_(_OWN if M > 1 else 1.0)
        self.stitches = nn.Parameter(start.repeat(len(widths), 1, 1))
        self.dropout = ListDropout(dropout)
        self.outputs = nn.ModuleList(nn.Linear(widths[-1], 1) for _ in range(M))
        self.product_weights = nn.Parameter(torch.ones(M, dimension))

    def forward(self, market: int, gmf: Vectors, mlp: Vectors) -> Tensor:
        """(B, K) logits."""
        product = weighted_product(gmf, self.product_weights[market])
        user, item = mlp
        hidden = torch.stack([F.relu(layer(user, item)) for layer in self.first])  # (M, B, K, width)
        for stitch, layers in zip(self.stitches, self.rest, strict=False):
            mixed = self.dropout(torch.tensordot(stitch, hidden, dims=1))
            parts = [F.relu(layer(part)) for layer, part in zip(cast(nn.ModuleList, layers), mixed, strict=True)]
            hidden = torch.stack(parts)
        last = torch.tensordot(self.stitches[-1][market], hidden, dims=1)
        logits: Tensor = product + self.outputs[market](last)[..., 0]
        return logits
