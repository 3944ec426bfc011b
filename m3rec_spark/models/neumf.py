"""NeuMF (He et al. 2017, arXiv:1708.05031, eq. 12), on the merged data of all markets.

    y_ui = h' [p_u^G * q_i^G ; phi([p_u^M; q_i^M])]

GMF and MLP have vectors of their own. Cost: that of the tower (tower.py), and 2 d flops a pair.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from m3rec_spark.models.layout import Factors, Layout
from m3rec_spark.models.pair_loss import pairwise_cross_entropy
from m3rec_spark.models.pairs import Pairs
from m3rec_spark.models.tower import Tower, weighted_product

PairScores = Callable[[int, Tensor, Tensor], Tensor]  # (market, rows (B,), slots (I,) or (B, I)) -> (B, I)


class NeuMF(nn.Module):
    """Args: dimension d of all four tables; widths of the tower; dropout between its layers."""

    def __init__(self, layout: Layout, dimension: int, widths: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.layout = layout
        self.gmf, self.mlp = Factors(layout, dimension), Factors(layout, dimension)
        self.tower = Tower(dimension, widths, dropout)
        self.product_weights = nn.Parameter(nn.init.ones_(self.gmf.user.weight.new_empty(dimension)))
        self.output = nn.Linear(widths[-1], 1)

    def forward(self, market: int, rows: Tensor, slots: Tensor) -> Tensor:
        """(B, K) logits; the market makes no difference."""
        product = weighted_product(self.gmf(rows, slots), self.product_weights)
        logits: Tensor = product + self.output(self.tower(*self.mlp(rows, slots)))[..., 0]
        return logits

    def loss(self, pairs: Pairs) -> Tensor:
        """Cross-entropy, mean over the pairs."""
        return pairwise_cross_entropy(self, pairs)

    def scorer(self) -> PairScores:
        """Scores of the model as it stands."""
        return lambda market, rows, slots: self(market, rows, slots if slots.ndim == 2 else slots[None])
