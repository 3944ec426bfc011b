"""The multi-layer perceptron on a (user, item) pair, phi([p_u; q_i]), that NeuMF and its multi-task kin share.

The first layer is taken apart, W [p; q] = W_u p + W_i q, so that B users against the same K items cost B + K products
of that layer and not B K. Cost of the others: 2 B K times the sum of the products of adjacent widths, in flops.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PairLinear(nn.Module):
    """W [p; q] + b for users (B, 1, d) and items (B or 1, K, d): (B, K, width)."""

    def __init__(self, dimension: int, width: int) -> None:
        super().__init__()
        self.user = nn.Linear(dimension, width)
        self.item = nn.Linear(dimension, width, bias=False)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """See the class."""
        summed: Tensor = self.user(user) + self.item(item)
        return summed


class ListDropout(nn.Module):
    """Dropout of the same units for all K items of a user.

    A positive and its negatives meet in one thinned network, and a batch draws B masks and not B K: drawing them is a
    quarter of a step's time.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., B, K, width)."""
        if not self.training:
            return hidden
        kept: Tensor = hidden * F.dropout(torch.ones_like(hidden[..., :1, :]), self.share)
        return kept


class Tower(nn.Module):
    """ReLU layers of the widths given, with dropout between them."""

    def __init__(self, dimension: int, widths: Sequence[int], dropout: float) -> None:
        super().__init__()
        self.first = PairLinear(dimension, widths[0])
        self.rest = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.dropout = ListDropout(dropout)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        """(B, 1, d), (B or 1, K, d) -> (B, K, last width)."""
        hidden = F.relu(self.first(user, item))
        for layer in self.rest:
            hidden = F.relu(layer(self.dropout(hidden)))
        return hidden


def weighted_product(factors: tuple[Tensor, Tensor], weights: Tensor) -> Tensor:
    """(B, K) h'(p * q), the part of generalised matrix factorisation, without the (B, K, d) products in memory."""
    user, item = factors
    return ((user * weights) @ item.transpose(1, 2))[:, 0]
