"""Losses over pairs and their own negatives, and the models that score one (user, item) at a time.

cross_entropy: -log s(y_ui) - sum over negatives log(1 - s(y_uj))      (He et al. 2017, eq. 7)
bpr:           -mean over negatives log s(y_ui - y_uj)                 (Rendle et al. 2009, eq. BPR-OPT)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3rec_spark.models.layout import Layout
from m3rec_spark.models.pairs import Pairs, PairScores


def cross_entropy(scores: Tensor) -> Tensor:
    """Sum over pairs; scores (P, 1 + K), the positive first."""
    return F.softplus(-scores[:, 0]).sum() + F.softplus(scores[:, 1:]).sum()


def bpr(scores: Tensor) -> Tensor:
    """Sum over pairs of the mean over negatives; scores (P, 1 + K), the positive first."""
    return F.softplus(scores[:, 1:] - scores[:, :1]).mean(dim=1).sum()


def by_market(layout: Layout, pairs: Pairs) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(market, rows (p,), slots (p, 1 + K): the positive, then its negatives) for each market of the batch."""
    first = 0
    for size, negatives in zip(pairs.sizes, pairs.negatives, strict=True):
        part = slice(first, first := first + size)
        rows, slots = pairs.rows[part], torch.cat([pairs.positives[part, None], negatives], dim=1)
        yield int(layout.row_market[rows[0]]), rows, slots


def whole_batch(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Rows (P,) and slots (P, 1 + K) of all markets: for models that need not know the market."""
    return pairs.rows, torch.cat([pairs.positives[:, None], torch.cat(list(pairs.negatives))], dim=1)


class PairModel(nn.Module):
    """A module that scores the pairs of one market at a time: (market, rows (B,), slots (B or 1, K)) -> (B, K)."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self.layout = layout

    def loss(self, pairs: Pairs) -> Tensor:
        """Cross-entropy, mean over the pairs of all markets."""
        losses = [cross_entropy(self(*part)) for part in by_market(self.layout, pairs)]
        return torch.stack(losses).sum() / len(pairs.rows)

    def scorer(self) -> PairScores:
        """Scores of the model as it stands."""
        return lambda market, rows, slots: self(market, rows, slots if slots.ndim == 2 else slots[None])
