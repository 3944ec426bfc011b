"""Loss and gradient of skip-gram with negative sampling over a batch of walks (paper, eq. 6, 9), written out by hand.

Loss of a pair (i, j) with negatives N:   -log s(v_i'c_j) - sum_{k in N} log s(-v_i'c_k),  s the sigmoid.
Erratum: eq. 9 as printed has s(v_i'c_k), which would reward likeness to negatives; the standard sign is meant.

Two things make it cheap. The pairs of a walk are one banded L x L product, never expanded. Negatives are drawn once a
batch, and as they are the same for every pair, all the pairs of an item are scored against them in one go, weighted so
that the expected loss and gradient are those of independent draws for each pair (`exact_negative_loss`).

Cost: 6 W L^2 d flops for the pairs, 6 U K d for the negatives. Memory: 3 W L d + 2 W L^2 + 2 U (K + d) numbers, kept.
Notation: W walks of L items in a batch; m rows, those of V that the batch may use, U of them in its walks; K shared
negatives; d dimensions. V is a pair (target, context) of (m, d); a pair of positions weighs weights[i, j].
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

Pair = tuple[Tensor, Tensor]
"""The target and the context half of V, of V0, or of a gradient: (m, d) each."""

_EXACT_WALKS = 16  # expanded at once by `exact_negatives`


class Scratch:
    """Memory kept between steps: fresh pages for a step's large arrays would cost as much as its arithmetic."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, like: Tensor, *shape: int) -> Tensor:
        """Uninitialised, of the shape and with the type and device of `like`; the next of its name overwrites it."""
        size = math.prod(shape)
        if name not in self._kept or len(self._kept[name]) < size:
            self._kept[name] = like.new_empty(size)
        return self._kept[name][:size].view(shape)


def pair_weights(length: int, window: int, shrink: bool = False) -> Tensor:
    """(L, L) float: the weight of the pair of positions (i, j): 1 where 0 < |i - j| <= window, else 0.

    shrink: (window + 1 - |i - j|) / window in the place of 1: the probability that the pair is within a window drawn
    uniformly from 1 to `window`, as word2vec draws one for each position; the expected gradient is the same.
    """
    gap = (torch.arange(length)[:, None] - torch.arange(length)).abs()
    within = ((gap > 0) & (gap <= window)).float()
    return within * (window + 1 - gap) / window if shrink else within


def positive_loss(vectors: Pair, walks: Tensor, weights: Tensor, scratch: Scratch) -> tuple[Tensor, Pair]:
    """Sum of -weights[i, j] log s(v_i'c_j) over the pairs of positions of each walk, and its gradient.

    Args:
        vectors: (m, d) each.
        walks: (W, L) int64 rows.
        weights: (L, L), of the type of the vectors.
        scratch: of this fit.

    Returns:
        The loss, and its gradient by target and context: (m, d) each, new.
    """
    (count, length), dimension = walks.shape, vectors[0].shape[1]
    tokens = walks.reshape(-1)

    def taken(name: str, half: Tensor) -> Tensor:
        rows = scratch.take(name, half, len(tokens), dimension)
        return torch.index_select(half, 0, tokens, out=rows).view(count, length, dimension)

    target, context = taken("targets", vectors[0]), taken("contexts", vectors[1])
    scores = scratch.take("scores", target, count, length, length)
    torch.bmm(target, context.transpose(1, 2), out=scores)
    loss = -(_logarithm_and_slope(scores, scratch).sum(0) * weights).sum()
    slope = scores.mul_(weights)

    order, starts = _by_row(tokens, len(vectors[0]))
    per_token = scratch.take("gradient", target, count, length, dimension)

    def by_row(left: Tensor, right: Tensor) -> Tensor:
        torch.bmm(left, right, out=per_token)
        return sums(per_token.view(-1, dimension), order, starts)

    by_target = by_row(slope, context)
    return loss, (by_target, by_row(slope.transpose(1, 2), target))


def shared_negative_loss(
    vectors: Pair, walks: Tensor, weights: Tensor, drawn: Tensor, negatives: int, gradient: Pair, scratch: Scratch
) -> Tensor:
    """Sum over pairs of -log s(-v_i'c_k) over the K `drawn` rows, each weighing negatives / K.

    Args:
        vectors: (m, d) each.
        walks: (W, L) int64 rows.
        weights: (L, L).
        drawn: (K,) int64 rows.
        negatives: |N| of a pair.
        gradient: (m, d) each; that of this loss is added to it.
        scratch: of this fit.
    """
    per_token = weights.sum(1).mul(negatives / len(drawn)).expand_as(walks).reshape(-1)
    per_row = per_token.new_zeros(len(vectors[0])).index_add_(0, walks.reshape(-1), per_token)
    rows = per_row.nonzero()[:, 0]  # (U,)
    share = per_row[rows]
    target = scratch.take("targets", vectors[0], len(rows), vectors[0].shape[1])
    torch.index_select(vectors[0], 0, rows, out=target)
    opposite = -vectors[1][drawn]  # (K, d): s(-v'c) = s(v'(-c))
    scores = scratch.take("negative scores", target, len(rows), len(drawn))
    torch.mm(target, opposite.T, out=scores)
    loss = -(_logarithm_and_slope(scores, scratch).sum(1) @ share)

    by_target = scratch.take("gradient", target, *target.shape)
    torch.mm(scores, opposite, out=by_target)
    gradient[0].index_add_(0, rows, by_target.mul_(share[:, None]))
    gradient[1].index_add_(0, drawn, -(scores.T @ target.mul_(share[:, None])))
    return loss


def exact_negative_loss(vectors: Pair, walks: Tensor, weights: Tensor, drawn: Tensor) -> Tensor:
    """Sum over pairs of -log s(-v_i'c_k) over the pair's own `drawn` rows: the slow reference; autograd follows it.

    Args:
        vectors: (m, d) each.
        walks: (W, L) int64 rows.
        weights: (L, L), with P positive ones.
        drawn: (W, P, negatives) rows; pairs in the order of weights.nonzero().
    """
    centre, other = weights.nonzero(as_tuple=True)
    target, context = F.embedding(walks[:, centre], vectors[0]), F.embedding(drawn, vectors[1])
    return (F.softplus(torch.einsum("wpd,wpkd->wpk", target, context)).sum(2) @ weights[centre, other]).sum()


def exact_negatives(vectors: Pair, walks: Tensor, weights: Tensor, drawn: Tensor, gradient: Pair) -> Tensor:
    """`exact_negative_loss`, a few walks at once; its gradient is added to `gradient`."""
    leaves = (vectors[0].detach().requires_grad_(), vectors[1].detach().requires_grad_())
    total = weights.new_zeros(())
    for some, own in zip(torch.split(walks, _EXACT_WALKS), torch.split(drawn, _EXACT_WALKS), strict=True):
        with torch.enable_grad():
            loss = exact_negative_loss(leaves, some, weights, own)
        for half, part in zip(gradient, torch.autograd.grad(loss, leaves), strict=True):
            half += part
        total += loss.detach()
    return total


def sums(values: Tensor, indices: Tensor, starts: Tensor, weights: Tensor | None = None) -> Tensor:
    """Row r of the result: the sum of weights[e] values[indices[e]] over entries e of starts[r]:starts[r + 1].

    A product of a CSR matrix and a dense one, and also the scatter-add of a batch: each row is summed in order by one
    thread, so the bits do not depend on their number, and nothing is expanded.

    Args:
        values: (any, d).
        indices: (entries,) integers.
        starts: (rows + 1,), of the type of `indices`.
        weights: (entries,) of the type of `values`; None: all 1.
    """
    summed: Tensor = F.embedding_bag(
        indices, values, starts, mode="sum", per_sample_weights=weights, include_last_offset=True
    )
    return summed


def _by_row(tokens: Tensor, n_rows: int) -> tuple[Tensor, Tensor]:
    """The positions of the tokens in the order of their rows, and where each row begins among them: (rows + 1,)."""
    order = torch.sort(tokens.int(), stable=True).indices
    counts = torch.bincount(tokens, minlength=n_rows)
    return order, torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _logarithm_and_slope(scores: Tensor, scratch: Scratch) -> Tensor:
    """The logarithms of s(x) for the scores x, which become s(x) - 1: the derivative of -log s(x)."""
    torch.sigmoid(scores, out=scores).clamp_(min=torch.finfo(scores.dtype).tiny)
    logarithm = torch.log(scores, out=scratch.take("logarithms", scores, *scores.shape))
    scores.sub_(1)
    return logarithm
