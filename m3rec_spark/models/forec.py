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
from m3rec_spark.models.neumf import NeuMF
from m3rec_spark.models.pair_loss import PairModel, by_market, cross_entropy
from m3rec_spark.models.pairs import Pairs
from m3rec_spark.models.tower import weighted_product


class Forec(PairModel):
    """Args: dimension d; widths of the tower; dropout; step a of the inner SGD."""

    forked: Tensor

    def __init__(
        self, layout: Layout, dimension: int, widths: Sequence[int], dropout: float, inner_rate: float
    ) -> None:
        super().__init__(layout)
        self.inner_rate = inner_rate
        self.body = NeuMF(layout, dimension, widths, dropout)
        markets, width = range(layout.n_markets), widths[-1]
        self.heads = nn.ModuleList(nn.Linear(width, width) for _ in markets)
        self.outputs = nn.ModuleList(nn.Linear(width, 1) for _ in markets)
        self.product_weights = nn.Parameter(torch.ones(layout.n_markets, dimension))
        self.register_buffer("forked", torch.tensor(False))

    def fork(self) -> None:
        """Ends the pre-training: every market gets a copy of the shared head, and the rest is frozen."""
        self.forked.fill_(True)
        self.body.requires_grad_(False)
        with torch.no_grad():
            self.product_weights.copy_(self.body.product_weights.expand_as(self.product_weights))
            for parameter in self.heads.parameters():
                parameter.zero_()
            for output in self.outputs:
                output.load_state_dict(self.body.output.state_dict())

    def forward(self, market: int, rows: Tensor, slots: Tensor) -> Tensor:
        """(B, K) logits."""
        if not self.forked:
            shared_logits: Tensor = self.body(market, rows, slots)
            return shared_logits
        shared = self.body.tower(*self.body.mlp(rows, slots))
        hidden = F.relu(self.heads[market](shared) + shared)
        product = weighted_product(self.body.gmf(rows, slots), self.product_weights[market])
        logits: Tensor = product + self.outputs[market](hidden)[..., 0]
        return logits

    def loss(self, pairs: Pairs) -> Tensor:
        """Mean over the pairs: of the query sets after the inner step, or once forked of all."""
        if self.forked:
            return super().loss(pairs)
        losses = [self._query_loss(*part) for part in by_market(self.layout, pairs)]
        return torch.stack(losses).sum() / len(pairs.rows)

    def _query_loss(self, market: int, rows: Tensor, slots: Tensor) -> Tensor:
        """Of every second pair after a step on the others, counted twice to weigh as all. One pair adapts to itself."""
        support, query = slice(1 if len(rows) > 1 else 0, None, 2), slice(0, None, 2)
        named = {name: value for name, value in self.body.named_parameters() if not name.startswith(("gmf.", "mlp."))}
        inner = cross_entropy(self.body(market, rows[support], slots[support])) / len(rows[support])
        slopes = torch.autograd.grad(inner, list(named.values()))
        adapted = {
            name: value - self.inner_rate * slope for (name, value), slope in zip(named.items(), slopes, strict=True)
        }
        scores = functional_call(self.body, adapted, (market, rows[query], slots[query]))
        return cross_entropy(scores) * len(rows) / len(rows[query])
