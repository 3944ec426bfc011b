"""FOREC (Bonab et al. 2021, arXiv:2109.05929, Sec. 4): learn to adapt over all markets, then a head for each.

1. Pre-training. NeuMF over the markets as tasks (MAML, Finn et al. 2017, first order): a step of SGD on a part of the
   market's pairs, theta_m = theta - a grad L_support(theta); the outer gradient is that of L_query at theta_m.
2. Forking. The vectors and the tower are frozen, and every market trains a head of its own on its pairs:
       y = h_m' [p^G * q^G ; relu(A_m phi([p; q]) + phi([p; q]))],  which starts as the shared network, A_m = 0.

Cost of a step: two of NeuMF's in pre-training, one afterwards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from m3rec_spark.models.layout import Layout
from m3rec_spark.models.pair_loss import PairModel, Vectors, cross_entropy
from m3rec_spark.models.tower import Tower, weighted_product

_ADAPTED = ("tower.", "output.", "product_weights")  # by the inner step


class Forec(PairModel):
    """Args: dimension d; widths of the tower; dropout; step a of the inner SGD."""

    forked: Tensor

    def __init__(
        self, layout: Layout, dimension: int, widths: Sequence[int], dropout: float, inner_rate: float
    ) -> None:
        super().__init__(layout, dimension)
        self.inner_rate = inner_rate
        self.tower = Tower(dimension, widths, dropout)
        self.product_weights = nn.Parameter(torch.ones(dimension))
        markets, width = range(layout.n_markets), widths[-1]
        self.output = nn.Linear(width, 1)
        self.heads = nn.ModuleList(nn.Linear(width, width) for _ in markets)
        self.outputs = nn.ModuleList(nn.Linear(width, 1) for _ in markets)
        self.market_products = nn.Parameter(torch.ones(layout.n_markets, dimension))
        self.register_buffer("forked", torch.tensor(False))

    def fork(self) -> None:
        """Ends the pre-training: every market gets a copy of the shared head, and the rest is frozen."""
        self.forked.fill_(True)
        for shared in (self.gmf, self.mlp, self.tower, self.output, self.product_weights):
            shared.requires_grad_(False)
        with torch.no_grad():
            self.market_products.copy_(self.product_weights.expand_as(self.market_products))
            for parameter in self.heads.parameters():
                parameter.zero_()
            for output in self.outputs:
                output.load_state_dict(self.output.state_dict())

    def forward(self, market: int, gmf: Vectors, mlp: Vectors) -> Tensor:
        """(B, K) logits."""
        hidden = self.tower(*mlp)
        if self.forked:
            hidden = F.relu(self.heads[market](hidden) + hidden)
        output = self.outputs[market] if self.forked else self.output
        weights = self.market_products[market] if self.forked else self.product_weights
        logits: Tensor = weighted_product(gmf, weights) + output(hidden)[..., 0]
        return logits

    def market_loss(self, market: int, gmf: Vectors, mlp: Vectors) -> Tensor:
        """Summed over the pairs of a market: of its query set after the inner step, or once forked of all.

        The query is every second pair after a step on the others, counted twice to weigh as all. One pair adapts to
        itself.
        """
        if self.forked:
            return super().market_loss(market, gmf, mlp)
        pairs = len(gmf[0])
        query, support = ([(user[part], item[part]) for user, item in (gmf, mlp)]
                          for part in (slice(0, None, 2), slice(1 if pairs > 1 else 0, None, 2)))  # fmt: skip
        named = {name: value for name, value in self.named_parameters() if name.startswith(_ADAPTED)}
        inner = cross_entropy(self(market, *support)) / len(support[0][0])
        slopes = torch.autograd.grad(inner, list(named.values()))
        adapted = {
            name: value - self.inner_rate * slope for (name, value), slope in zip(named.items(), slopes, strict=True)
        }
        return cross_entropy(functional_call(self, adapted, (market, *query))) * pairs / len(query[0][0])
