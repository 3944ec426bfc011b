"""Losses over pairs and their own negatives, and the models that score one (user, item) at a time.

cross_entropy: -log s(y_ui) - sum over negatives log(1 - s(y_uj))      (He et al. 2017, eq. 7)
bpr:           -mean over negatives log s(y_ui - y_uj)                 (Rendle et al. 2009, eq. BPR-OPT)
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3rec_spark.models.layout import Factors, Layout
from m3rec_spark.models.pairs import Pairs, PairScores

Vectors = tuple[Tensor, Tensor]  # of users and items


def cross_entropy(scores: Tensor) -> Tensor:
    """Sum over pairs; scores (P, 1 + K), the positive first."""
    return F.softplus(-scores[:, 0]).sum() + F.softplus(scores[:, 1:]).sum()


def bpr(scores: Tensor) -> Tensor:
    """Sum over pairs of the mean over negatives; scores (P, 1 + K), the positive first."""
    return F.softplus(scores[:, 1:] - scores[:, :1]).mean(dim=1).sum()


def whole_batch(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Rows (P,) and slots (P, 1 + K) of all markets: the positive, then its negatives."""
    return pairs.rows, torch.cat([pairs.positives[:, None], torch.cat(list(pairs.negatives))], dim=1)


class PairModel(nn.Module):
    """NeuMF's two tables of factors, and what scores the pairs of one market by them.

    forward(market, gmf, mlp) -> (B, K) logits; gmf and mlp are (B, 1, d) users and (B or 1, K, d) items.
    """

    def __init__(self, layout: Layout, dimension: int) -> None:
        super().__init__()
        self.layout = layout
        self.gmf, self.mlp = Factors(layout, dimension), Factors(layout, dimension)

    def factors(self, rows: Tensor, slots: Tensor) -> tuple[Vectors, Vectors]:
        """Of rows (B,) and slots (B or 1, K)."""
        return self.gmf(rows, slots), self.mlp(rows, slots)

    def loss(self, pairs: Pairs) -> Tensor:
        """Mean over the pairs of all markets."""
        losses = [self.market_loss(*part) for part in self._by_market(pairs)]
        return torch.stack(losses).sum() / len(pairs.rows)

    def market_loss(self, market: int, gmf: Vectors, mlp: Vectors) -> Tensor:
        """Cross-entropy, summed over the pairs of a market."""
        return cross_entropy(self(market, gmf, mlp))

    def scorer(self) -> PairScores:
        """Scores of the model as it stands."""
        return lambda market, rows, slots: self(market, *self.factors(rows, slots if slots.ndim == 2 else slots[None]))

    def _by_market(self, pairs: Pairs) -> Iterator[tuple[int, Vectors, Vectors]]:
        """The vectors are looked up once, so that a step has one sparse gradient a table and not one a market."""
        ends = accumulate(pairs.sizes)
        markets = [int(self.layout.row_market[pairs.rows[end - 1]]) for end in ends]
        gmf, mlp = (
            zip(*(torch.split(part, pairs.sizes) for part in vectors), strict=True)
            for vectors in self.factors(*whole_batch(pairs))
        )
        return zip(markets, gmf, mlp, strict=True)
