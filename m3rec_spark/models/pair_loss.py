"""Losses over pairs and their own negatives, for the models that score one (user, item) at a time.

cross_entropy: -log s(y_ui) - sum over negatives log(1 - s(y_uj))      (He et al. 2017, eq. 7)
bpr:           -mean over negatives log s(y_ui - y_uj)                 (Rendle et al. 2009, eq. BPR-OPT)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from m3rec_spark.models.layout import Layout
from m3rec_spark.models.pairs import Pairs


class PairModel(Protocol):
    """A model that gives (B, K) scores for rows (B,) and slots (B or 1, K) of one market."""

    layout: Layout

    def __call__(self, market: int, rows: Tensor, slots: Tensor) -> Tensor:
        """See the class."""


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


def pairwise_cross_entropy(model: PairModel, pairs: Pairs) -> Tensor:
    """The mean over all pairs of the batch of a model that is called market by market."""
    losses = [cross_entropy(model(*part)) for part in by_market(model.layout, pairs)]
    return torch.stack(losses).sum() / len(pairs.rows)
