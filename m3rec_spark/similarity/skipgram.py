"""Inter-market item similarity: skip-gram over random walks, smoothed by B-Glob (paper, Sec. 3.1.2, eq. 6, 8, 9).

V = B V0 + V0 for the target and the context vectors (eq. 8); V-Glob is the target half. Loss of a pair (i, j), up to
`window` steps apart in a walk, with negatives N:   -log s(v_i'c_j) - sum_{k in N} log s(-v_i'c_k),  s the sigmoid.
Erratum: eq. 9 as printed has s(v_i'c_k), which would reward likeness to negatives; the standard sign is meant.

Two things make it cheap. The pairs of a walk are one banded L x L product, never expanded. Negatives are drawn once a
batch, and as they are the same for every pair, all the pairs of an item are scored against them in one go, weighted so
that the expected loss and gradient are those of `negatives` independent draws a pair (`exact=True`).

Cost of a step: W L^2 d for the pairs, U K d for the negatives, 4 nnz(B) d for eq. 8, 2 n d for Adam.
Notation: W walks of L items in a batch; U distinct items among them; K shared negatives; n items; d dimensions.
"""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor
from tqdm import tqdm

from m3rec_spark.similarity.capacity import require

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
POWER = 0.75  # negatives come with probability degree^0.75 (Mikolov et al. 2013)


class _Smooth(torch.autograd.Function):
    """V0 -> B V0 + V0; backward by a stored B', as torch's own sparse backward builds a dense or transposed B."""

    @staticmethod
    def forward(ctx: Any, initial: Tensor, matrix: Tensor, transpose: Tensor) -> Tensor:
        ctx.transpose = transpose
        return torch.addmm(initial, matrix, initial)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        return torch.addmm(gradient, ctx.transpose, gradient), None, None


class Smoothing:
    """Eq. 8 as a function of V0 (n, any); without a similarity it is the identity."""

    def __init__(self, similarity: sparse.csr_matrix | None, device: torch.device) -> None:
        """similarity: (n, n) B-Glob."""
        self.pair = None
        if similarity is not None:
            self.pair = _torch_csr(similarity, device), _torch_csr(similarity.T.tocsr(), device)

    def __call__(self, initial: Tensor) -> Tensor:
        """B V0 + V0."""
        smoothed: Tensor = initial if self.pair is None else _Smooth.apply(initial, *self.pair)  # type: ignore[no-untyped-call]
        return smoothed


class Noise:
    """Draws items with probability proportional to degree^POWER; never one of degree 0."""

    def __init__(self, degrees: NDArray[np.int64], generator: torch.Generator) -> None:
        """degrees: (n,), at least one positive. generator: of the CPU, so that every device draws the same."""
        self.cumulative = torch.from_numpy(np.cumsum(degrees.astype(np.float64) ** POWER))
        self.generator = generator

    def draw(self, *shape: int) -> Tensor:
        """Independent items, int64, of the shape."""
        uniform = torch.rand(shape, generator=self.generator, dtype=torch.float64) * self.cumulative[-1]
        return torch.searchsorted(self.cumulative, uniform, right=True)


def plan(n_items: int, n_walks: int, length: int, dimension: int, shared: int, batch_walks: int) -> int:
    """Peak bytes of `fit_item_vectors`, without B-Glob, checked before anything is allocated.

    Raises:
        CapacityError: when they are more than the machine has to give.
    """
    model = 6 * 2 * n_items * dimension  # V0, V, the gradients of both, Adam's two moments
    tokens = batch_walks * length
    batch = 4 * tokens * dimension + 3 * tokens * length + 3 * min(tokens, n_items) * shared
    needed = 4 * (model + batch + 2 * n_walks * length)
    require(
        needed,
        f"skip-gram on {n_items:,} items and {n_walks:,} walks (batches of {batch_walks:,})",
        "lower skipgram.batch_walks, skipgram.shared, skipgram.dimension or walks.per_item, or use a larger machine",
    )
    return needed


def pair_weights(length: int, window: int) -> Tensor:
    """(L, L) float: the weight of the pair of positions (i, j): 1 where 0 < |i - j| <= window, else 0."""
    gap = (torch.arange(length)[:, None] - torch.arange(length)).abs()
    return ((gap > 0) & (gap <= window)).float()


def positive_loss(target: Tensor, context: Tensor, walks: Tensor, weights: Tensor) -> Tensor:
    """Sum of -log s(v_i'c_j) over the weighted pairs of positions of each walk.

    Args:
        target: (n, d).
        context: (n, d).
        walks: (W, L) int64 items.
        weights: (L, L) of `pair_weights`.
    """
    scores = torch.bmm(F.embedding(walks, target), F.embedding(walks, context).transpose(1, 2))  # (W, L, L)
    return (F.softplus(-scores) * weights).sum()


def shared_negative_loss(
    target: Tensor, context: Tensor, walks: Tensor, weights: Tensor, drawn: Tensor, negatives: int
) -> Tensor:
    """Sum over pairs of -log s(-v_i'c_k) over the K `drawn` items, each weighing negatives / K."""
    per_token = weights.sum(1).expand_as(walks).reshape(-1)
    per_item = per_token.new_zeros(len(target)).index_add_(0, walks.reshape(-1), per_token)
    items = per_item.nonzero()[:, 0]  # (U,)
    scores = F.embedding(items, target) @ F.embedding(drawn, context).T  # (U, K)
    return (F.softplus(scores).sum(1) @ per_item[items]) * (negatives / len(drawn))


def exact_negative_loss(target: Tensor, context: Tensor, walks: Tensor, weights: Tensor, drawn: Tensor) -> Tensor:
    """Sum over pairs of -log s(-v_i'c_k) over the pair's own `drawn` items: the slow reference.

    Args:
        target: (n, d).
        context: (n, d).
        walks: (W, L) int64 items.
        weights: (L, L), with P positive ones.
        drawn: (W, P, negatives) items; pairs in the order of weights.nonzero().
    """
    centre, other = weights.nonzero(as_tuple=True)
    scores = torch.einsum("wpd,wpkd->wpk", F.embedding(walks[:, centre], target), F.embedding(drawn, context))
    return (F.softplus(scores).sum(2) @ weights[centre, other]).sum()


def fit_item_vectors(
    walks: NDArray[np.int32],
    similarity: sparse.csr_matrix | None,
    degrees: NDArray[np.int64],
    *,
    dimension: int,
    window: int,
    negatives: int,
    shared: int,
    epochs: int,
    batch_walks: int,
    learning_rate: float,
    seed: int,
    exact: bool = False,
    device: torch.device = CPU,
    on_epoch: Callable[[int, float], None] | None = None,
) -> NDArray[np.float32]:
    """V-Glob: (n, d) item vectors. The same seed and number of threads give the same bits on a CPU.

    Args:
        walks: (all walks, L) items; may be memory-mapped.
        similarity: (n, n) B-Glob of eq. 7; None: V = V0.
        degrees: (n,) of `WalkGraph.degrees`; an item of degree 0 is in no walk and keeps its random start.
        dimension: d.
        window: largest distance of a pair in a walk.
        negatives: |N| of a pair.
        shared: K negatives drawn once a batch.
        epochs: passes over the walks.
        batch_walks: W.
        learning_rate: of Adam; falls linearly to 0 over all steps.
        seed: of the initial vectors, the order of the walks and the negatives.
        exact: draw `negatives` for each pair instead of `shared` ones a batch.
        device: of torch.
        on_epoch: is given the epoch's number (0 up) and its mean loss of a pair.
    """
    generator = torch.Generator().manual_seed(seed)
    smooth, noise = Smoothing(similarity, device), Noise(degrees, generator)
    weights = pair_weights(walks.shape[1], window).to(device)
    start = torch.randn(len(degrees), 2 * dimension, generator=generator) * dimension**-0.5
    initial = start.to(device).requires_grad_()  # target and context side by side: one sparse product for both
    optimizer = torch.optim.Adam([initial], lr=learning_rate, fused=True)
    steps = epochs * -(-len(walks) // batch_walks)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)

    def batch_loss(items: Tensor) -> Tensor:
        target, context = torch.split(smooth(initial), dimension, dim=1)
        loss = positive_loss(target, context, items, weights)
        if exact:
            drawn = noise.draw(len(items), int(weights.count_nonzero()), negatives).to(device)
            loss = loss + exact_negative_loss(target, context, items, weights, drawn)
        else:
            drawn = noise.draw(shared).to(device)
            loss = loss + shared_negative_loss(target, context, items, weights, drawn, negatives)
        return loss / (weights.sum() * len(items))  # mean over positive pairs

    with tqdm(total=steps, desc="skip-gram", unit="step", disable=not sys.stderr.isatty()) as progress:
        for epoch in range(epochs):
            total = 0.0
            for items in _batches(walks, batch_walks, generator):
                loss = batch_loss(items.to(device))
                optimizer.zero_grad(set_to_none=True)
                torch.autograd.backward(loss)
                optimizer.step()
                schedule.step()
                total += loss.item() * len(items)
                progress.update()
            log.info("skip-gram epoch %d of %d: loss of a pair %.4f", epoch + 1, epochs, total / len(walks))
            if on_epoch is not None:
                on_epoch(epoch, total / len(walks))
    with torch.no_grad():
        vectors: NDArray[np.float32] = smooth(initial[:, :dimension].contiguous()).cpu().numpy()
    return vectors


def _batches(walks: NDArray[np.int32], size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """All walks once, in a random order, as (size, L) int64; the last batch may be smaller."""
    for chosen in torch.split(torch.randperm(len(walks), generator=generator), size):
        yield torch.from_numpy(walks[chosen.sort().values.numpy()].astype(np.int64))


def _torch_csr(matrix: sparse.csr_matrix, device: torch.device) -> Tensor:
    with warnings.catch_warnings():  # "CSR support is in beta": on every first use in a process
        warnings.filterwarnings("ignore", message="Sparse", category=UserWarning)
        parts = (torch.from_numpy(matrix.indptr), torch.from_numpy(matrix.indices), torch.from_numpy(matrix.data))
        return torch.sparse_csr_tensor(*parts, size=matrix.shape, device=device, check_invariants=True)
