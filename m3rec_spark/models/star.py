"""STAR (Sheng et al. 2021, arXiv:2101.11427, eq. 3-9): a shared network, and one for every market around it.

    W*_m = W_m * W,  b*_m = b_m + b              every layer of the star (products of elements)
    z' = gamma gamma_m (z - mean_m) / sqrt(var_m + eps) + beta + beta_m      partitioned normalisation of its input
    y = s_m([p; q]) + s_a([p; q], e_m) + h_m'(p^G * q^G)      with the auxiliary network s_a on the market

NeuMF's product of factors stands beside the star. Cost: that of one tower a pair, and of the small auxiliary one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3rec_spark.models.layout import Layout
from m3rec_spark.models.pair_loss import PairModel, Vectors
from m3rec_spark.models.tower import ListDropout, PairLinear, weighted_product

_AUXILIARY = 32  # width of the auxiliary network


class StarLinear(nn.Module):
    """x -> (W_m * W) x + b_m + b. W_m starts at 1 and b_m at 0: every market begins with the shared layer."""

    def __init__(self, markets: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.shared = nn.Linear(inputs, outputs)
        self.weights = nn.Parameter(torch.ones(markets, outputs, inputs))
        self.biases = nn.Parameter(torch.zeros(markets, outputs))

    def matrix(self, market: int) -> Tensor:
        """(outputs, inputs) W*_m."""
        return self.shared.weight * self.weights[market]

    def bias(self, market: int) -> Tensor:
        """(outputs,) b*_m."""
        return self.shared.bias + self.biases[market]

    def forward(self, market: int, x: Tensor) -> Tensor:
        """(..., inputs) -> (..., outputs)."""
        return F.linear(x, self.matrix(market), self.bias(market))


class PartitionedNorm(nn.Module):
    """Batch normalisation with the statistics of one market, and its own scale and shift on the shared ones."""

    means: Tensor
    variances: Tensor

    def __init__(self, markets: int, width: int) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))
        self.scales, self.shifts = nn.Parameter(torch.ones(markets, width)), nn.Parameter(torch.zeros(markets, width))
        self.register_buffer("means", torch.zeros(markets, width))
        self.register_buffer("variances", torch.ones(markets, width))

    def forward(self, market: int, x: Tensor) -> Tensor:
        """(..., width); the mean and variance of a batch of one vector say nothing, so the running ones stand in."""
        flat = x.reshape(-1, x.shape[-1])
        scale, shift = self.scale * self.scales[market], self.shift + self.shifts[market]
        own = self.training and len(flat) > 1
        return F.batch_norm(flat, self.means[market], self.variances[market], scale, shift, own).view_as(x)


class Star(PairModel):
    """Args: dimension d; widths of the star's layers; dropout."""

    def __init__(self, layout: Layout, dimension: int, widths: Sequence[int], dropout: float) -> None:
        super().__init__(layout, dimension)
        M = layout.n_markets
        self.norms = nn.ModuleList(PartitionedNorm(M, dimension) for _ in range(2))  # features of users, of items
        self.first = StarLinear(M, 2 * dimension, widths[0])
        shapes = zip(widths, [*widths[1:], 1], strict=True)
        self.rest = nn.ModuleList(StarLinear(M, inputs, outputs) for inputs, outputs in shapes)
        self.dropout = ListDropout(dropout)
        self.market = nn.Embedding(M, dimension)
        self.auxiliary = PairLinear(dimension, _AUXILIARY)
        self.auxiliary_market = nn.Linear(dimension, _AUXILIARY, bias=False)
        self.auxiliary_output = nn.Linear(_AUXILIARY, 1)
        self.product_weights = nn.Parameter(torch.ones(M, dimension))

    def forward(self, market: int, gmf: Vectors, mlp: Vectors) -> Tensor:
        """(B, K) logits."""
        product = weighted_product(gmf, self.product_weights[market])
        user, item = (norm(market, part) for norm, part in zip(self.norms, mlp, strict=True))
        of_user, of_item = self.first.matrix(market).chunk(2, dim=1)  # W [p; q] = W_u p + W_i q
        hidden = F.linear(user, of_user, self.first.bias(market)) + F.linear(item, of_item)
        for layer in self.rest:
            hidden = layer(market, self.dropout(F.relu(hidden)))
        known = self.auxiliary_market(self.market.weight[market])
        auxiliary = self.auxiliary_output(F.relu(self.auxiliary(user, item) + known))
        logits: Tensor = product + (hidden + auxiliary)[..., 0]
        return logits
