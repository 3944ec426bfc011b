"""Inter-market item similarity: skip-gram over random walks, smoothed by B-Glob (paper, Sec. 3.1.2, eq. 6, 8, 9).

V = B V0 + V0 for the target and the context vectors (eq. 8, `smoothing`), trained on the loss of `skipgram_loss` over
the pairs up to `window` steps apart in a walk; V-Glob is the target half.

Up to `smooth_rows_above` items a step computes all of V, and Adam moves all of V0. Above, a step computes the rows of V
that its batch needs and moves the rows of V0 behind them (lazy Adam: rows that a batch does not reach keep vectors and
moments), so that its cost does not grow with n.

Cost of a step: 6 W L^2 d flops for the pairs, 6 U K d for the negatives, 8 nnz(B) d for eq. 8, and Adam's 7 passes over
2 n d numbers; by rows: nnz(B[U, :]) and the rows reached in the place of nnz(B) and n.
Notation: W walks of L items in a batch; U distinct items among them; K shared negatives; n items; d dimensions.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor
from tqdm import tqdm

from m3rec_spark.errors import DivergedError
from m3rec_spark.similarity.capacity import require
from m3rec_spark.similarity.probe import Probe
from m3rec_spark.similarity.skipgram_loss import (
    Pair,
    Scratch,
    exact_negatives,
    pair_weights,
    positive_loss,
    shared_negative_loss,
)
from m3rec_spark.similarity.smoothing import RowSmoothing, Smoothing

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
POWER = 0.75  # negatives come with probability degree^0.75 (Mikolov et al. 2013)
_LOWER = "lower skipgram.learning_rate"
ENTRY_BYTES = 32  # an entry of B: as it comes, renumbered, in B + I, and in the transpose; 8 each


@dataclass(frozen=True)
class Renumbered:
    """The items in a random order, for the time of the fit.

    Their own order goes with popularity, as ids and markets do: threads that share the rows of B evenly would share its
    entries unevenly (a third of the time of a product, measured on two).
    """

    old: Tensor
    """(n,) the item behind each new number."""
    new: Tensor
    """(n,) the new number of each item."""

    @classmethod
    def at_random(cls, n_items: int) -> Renumbered:
        """A permutation, the same for the same number of items."""
        old = torch.randperm(n_items, generator=torch.Generator().manual_seed(n_items))
        return cls(old, torch.argsort(old))

    def matrix(self, square: sparse.csr_matrix) -> sparse.csr_matrix:
        """The same matrix under the new numbers, its columns ascending."""
        renumbered = square[self.old.numpy()][:, self.old.numpy()].tocsr()
        renumbered.sort_indices()
        return renumbered


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


def plan(
    n_items: int,
    n_walks: int,
    length: int,
    dimension: int,
    shared: int,
    batch_walks: int,
    similarity_entries: int = 0,
) -> int:
    """Peak bytes of `fit_item_vectors`, checked before anything is allocated.

    Args:
        n_items: n.
        n_walks: all walks.
        length: L.
        dimension: d.
        shared: K.
        batch_walks: W.
        similarity_entries: of B-Glob, which is kept with B + I and its transpose; 0 while it is not known.

    Raises:
        CapacityError: when they are more than the machine has to give.
    """
    model = 6 * 2 * n_items * dimension  # V0, V, the gradients of both, Adam's two moments
    tokens = batch_walks * length
    rows = min(tokens, n_items)
    batch = 3 * tokens * dimension + 2 * tokens * length + 2 * rows * (shared + dimension)
    needed = 4 * (model + batch + n_walks * length) + ENTRY_BYTES * similarity_entries
    require(
        needed,
        f"skip-gram on {n_items:,} items and {n_walks:,} walks (batches of {batch_walks:,})",
        "lower skipgram.batch_walks, skipgram.shared, skipgram.dimension or walks.per_item, raise ease.epsilon, or "
        "use a larger machine",
    )
    return needed


@dataclass
class _BatchLoss:
    """Mean loss of a positive pair of a batch, with its negatives, and the gradient by V."""

    weights: Tensor
    negatives: int
    scratch: Scratch = field(default_factory=Scratch)

    def __call__(self, vectors: Pair, walks: Tensor, drawn: Tensor) -> tuple[Tensor, Pair]:
        """drawn: (K,) shared, or (W, P, negatives) for each pair; both index rows of `vectors`, as `walks` do."""
        weights = self.weights / (self.weights.sum() * len(walks))
        loss, gradient = positive_loss(vectors, walks, weights, self.scratch)
        if drawn.dim() == 1:
            loss += shared_negative_loss(vectors, walks, weights, drawn, self.negatives, gradient, self.scratch)
        else:
            loss += exact_negatives(vectors, walks, weights, drawn, gradient)
        return loss, gradient


class _AllRows:
    """A step computes all of V; Adam moves all of V0."""

    def __init__(self, initial: Pair, similarity: sparse.csr_matrix | None, learning_rate: float) -> None:
        self.initial = initial
        self.smooth = Smoothing(similarity, initial[0].device)
        self.optimizer: torch.optim.Optimizer = torch.optim.Adam(initial, lr=learning_rate, fused=True)

    def step(self, loss: _BatchLoss, walks: Tensor, drawn: Tensor) -> Tensor:
        """One step on the loss of a batch, which it gives."""
        value, gradient = loss((self.smooth(self.initial[0]), self.smooth(self.initial[1])), walks, drawn)
        for half, part in zip(self.initial, gradient, strict=True):
            half.grad = self.smooth.backward(part)
        self.optimizer.step()
        return value

    def vectors(self) -> NDArray[np.float32]:
        """V-Glob."""
        return self.smooth(self.initial[0]).detach().cpu().numpy()


class _BatchRows:
    """A step computes the rows of V that the batch needs; lazy Adam moves the rows of V0 behind them."""

    def __init__(self, initial: Pair, similarity: sparse.csr_matrix | None, learning_rate: float) -> None:
        self.initial = initial
        self.smooth = RowSmoothing(similarity, initial[0].device)
        self.optimizer: torch.optim.Optimizer = torch.optim.SparseAdam(list(initial), lr=learning_rate)

    def step(self, loss: _BatchLoss, walks: Tensor, drawn: Tensor) -> Tensor:
        """One step on the loss of a batch, which it gives."""
        items = torch.cat([walks.reshape(-1), drawn.reshape(-1)])
        rows, local = torch.unique(items, return_inverse=True)
        vectors, behind = self.smooth(self.initial, rows)
        local_walks, local_drawn = local[: walks.numel()].view_as(walks), local[walks.numel() :].view_as(drawn)
        value, gradient = loss(vectors, local_walks, local_drawn)
        with torch.sparse.check_sparse_tensor_invariants(False):  # type: ignore[no-untyped-call] # said, or torch warns
            for half, part in zip(self.initial, gradient, strict=True):
                moved = behind.backward(part)
                half.grad = torch.sparse_coo_tensor(behind.reached[None], moved, half.shape, is_coalesced=True)
            self.optimizer.step()
        return value

    def vectors(self) -> NDArray[np.float32]:
        """V-Glob."""
        return self.smooth.all(self.initial[0]).detach().cpu().numpy()


@torch.no_grad()
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
    shrink_window: bool = False,
    smooth_rows_above: int = 100_000,
    device: torch.device = CPU,
    probe: Probe | None = None,
    on_epoch: Callable[[int, float, float | None], None] | None = None,
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
        shrink_window: near pairs weigh more, as word2vec's random windows make it (`pair_weights`).
        smooth_rows_above: with more items than this, steps touch the rows of their batch only.
        device: of torch.
        probe: held-out pairs to judge V-Glob after each epoch; a warning tells of an under-trained one.
        on_epoch: is given the epoch's number (0 up), its mean loss of a pair, and the probe's AUC (None without).

    Raises:
        DivergedError: the loss of an epoch, or a vector at the end, is NaN or infinite.
    """
    generator = torch.Generator().manual_seed(seed)
    items = Renumbered.at_random(len(degrees))
    similarity = None if similarity is None else items.matrix(similarity)
    noise, weights = Noise(degrees, generator), pair_weights(walks.shape[1], window, shrink_window).to(device)
    loss = _BatchLoss(weights, negatives)
    target = _random(len(degrees), dimension, generator, items.old, device)
    start = (target, _random(len(degrees), dimension, generator, items.old, device))
    model = (_AllRows if len(degrees) <= smooth_rows_above else _BatchRows)(start, similarity, learning_rate)
    steps = epochs * -(-len(walks) // batch_walks)
    schedule = torch.optim.lr_scheduler.LambdaLR(model.optimizer, lambda step: 1 - step / steps)
    own = (int(weights.count_nonzero()), negatives)
    aucs: list[float] = []
    with tqdm(total=steps, desc="skip-gram", unit="step", disable=not sys.stderr.isatty()) as progress:
        for epoch in range(epochs):
            total = torch.zeros((), device=device, dtype=torch.float64)
            for batch in _batches(walks, batch_walks, generator):
                drawn = noise.draw(len(batch), *own) if exact else noise.draw(shared)
                total += len(batch) * model.step(loss, items.new[batch].to(device), items.new[drawn].to(device))
                schedule.step()
                progress.update()
            mean, auc = float(total) / len(walks), None
            if not math.isfinite(mean):
                raise DivergedError(f"the loss of skip-gram became {mean} in epoch {epoch + 1}: {_LOWER}")
            if probe is not None:
                aucs.append(auc := probe.auc(model.vectors()[items.new]))
            judged = "" if auc is None else f", AUC on held-out pairs {auc:.4f}"
            log.info("skip-gram epoch %d of %d: loss of a pair %.4f%s", epoch + 1, epochs, mean, judged)
            if on_epoch is not None:
                on_epoch(epoch, mean, auc)
    if probe is not None:
        probe.warn(aucs)
    vectors: NDArray[np.float32] = model.vectors()[items.new]
    if not np.isfinite(vectors).all():
        raise DivergedError(f"vectors of skip-gram became NaN or infinite in the last step: {_LOWER}")
    return vectors


def _random(n_items: int, dimension: int, generator: torch.Generator, order: Tensor, device: torch.device) -> Tensor:
    """(n, d) normal numbers of variance 1 / d, in the order of the items: vectors of length about 1."""
    start = torch.randn(n_items, dimension, generator=generator).mul_(dimension**-0.5)[order]
    return start.to(device).requires_grad_()


def _batches(walks: NDArray[np.int32], size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """All walks once, in a random order, as (size, L) int64; the last batch may be smaller."""
    for chosen in torch.split(torch.randperm(len(walks), generator=generator), size):
        yield torch.from_numpy(walks[chosen.sort().values.numpy()].astype(np.int64))
