"""The trials of docs/experiments.md on a workspace: NDCG@10 of linear item models on the validation half.

python benchmarks/trials.py build/xmarket        after `m3rec run`; 5 to 6 minutes on 2 cores; needs 6 GB
Prints Markdown rows. The test half is never read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from m3rec_spark.data.arrays import MarketArrays, open_arrays
from m3rec_spark.evaluation.metrics import ndcg
from m3rec_spark.evaluation.validation import sample_blocks, validation_sample
from m3rec_spark.ranking.scorers import CosineScorer
from m3rec_spark.similarity import ease
from m3rec_spark.similarity.slim import fit_slim
from m3rec_spark.tables import Workspace

Scores = Callable[[int], np.ndarray]  # market -> (its validation users, its items)
_SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)


@dataclass
class Shop:
    """The train histories, and the validation users of every market."""

    workspace: Workspace

    @cached_property
    def arrays(self) -> MarketArrays:
        return open_arrays(self.workspace.folder("arrays"))

    @cached_property
    def blocks(self) -> dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Market -> users, their positives, their rivals."""
        sample = validation_sample(self.workspace.folder("candidates"), 10**9, seed=0)
        return {market: rest for market, *rest in sample_blocks(self.arrays, sample, 10**9)}

    @cached_property
    def histories(self) -> sparse.csr_matrix:
        a = self.arrays
        return sparse.csr_matrix((np.ones(len(a.slots)), a.items, a.indptr), (a.n_rows, a.n_items))

    @cached_property
    def gram(self) -> sparse.csr_matrix:
        return (self.histories.T @ self.histories).tocsr()

    def items(self, market: int) -> np.ndarray:
        return self.arrays.slot_items[self.arrays.market_slots(market)]

    def counts(self, market: int) -> np.ndarray:
        return np.maximum(self.arrays.slot_counts[self.arrays.market_slots(market)], 1)

    def own_gram(self, market: int, others: float = 0.0) -> sparse.csr_matrix:
        X = self.arrays.history(market).astype(np.float64)
        own = (X.T @ X).tocsr()
        if not others:
            return own
        everyone = self.gram[self.items(market)][:, self.items(market)]
        return (own + others * (everyone - own)).tocsr()

    def through(self, market: int, weights: np.ndarray) -> np.ndarray:
        """x B for the validation users, float32."""
        history = self.arrays.history(market, self.blocks[market][0])
        index, starts = (torch.from_numpy(part.astype(np.int64)) for part in (history.indices, history.indptr))
        table = torch.from_numpy(np.ascontiguousarray(weights, np.float32))
        summed = torch.nn.functional.embedding_bag(index, table, starts, mode="sum", include_last_offset=True)
        return summed.numpy()

    def ndcg(self, market: int, scores: np.ndarray) -> float:
        _, positives, rivals = self.blocks[market]
        table, among = torch.from_numpy(np.ascontiguousarray(scores, np.float32)), torch.from_numpy(rivals)
        own = table.gather(1, torch.from_numpy(positives.astype(np.int64))[:, None])
        ranks = 1 + ((table > own) & among).sum(1) + ((table == own) & among).sum(1) / 2
        return 100 * ndcg(ranks.numpy().astype(float))


def main() -> None:
    shop = Shop(Workspace(sys.argv[1]))
    for name, scores in trials(shop):
        show(name, [shop.ndcg(market, scores(market)) for market in shop.blocks])
    print()
    for name, added in additions(shop):
        best = [max(shop.ndcg(m, own_slim(shop, m) + share * added(m)) for share in _SHARES) for m in shop.blocks]
        show(f"SLIM of the market + its best share of {name}", best)


def show(name: str, found: list[float]) -> None:
    print(f"| {name} | {' | '.join(f'{value:.1f}' for value in [*found, np.mean(found)])} |", flush=True)


def trials(shop: Shop) -> Iterator[tuple[str, Scores]]:
    for ridge in (30.0, 10.0, 60.0, 150.0):
        B = ease.solve(np.asfortranarray(shop.gram.toarray()), ridge)
        yield f"EASE^R, all markets, lambda {ridge:g}", joint(shop, B)
    yield (
        "EASE^R, every market alone, lambda 20",
        lambda m: shop.through(m, ease.solve(shop.own_gram(m).toarray(order="F"), 20.0)),
    )
    for l1, l2 in ((1.0, 30.0), (0.1, 30.0), (0.5, 10.0)):
        yield f"SLIM, all markets, l1 {l1:g}, l2 {l2:g}", joint(shop, fit_slim(shop.gram, l1, l2)[0])
    for l1, l2, others in ((1.0, 15.0, 0.0), (1.0, 30.0, 0.0), (2.0, 15.0, 0.0), (1.0, 15.0, 0.1), (1.0, 15.0, 0.3)):
        name = f"SLIM, every market alone, l1 {l1:g}, l2 {l2:g}"
        name = f"SLIM, the other markets weighing {others:g}, l1 {l1:g}, l2 {l2:g}" if others else name
        yield name, lambda m, l1=l1, l2=l2, others=others: own_slim(shop, m, l1, l2, others)
    yield "the same alone, the diagonal of A raised by 30%", lambda m: own_slim(shop, m, diagonal=1.3)
    yield "the same, scores divided by popularity^0.15", lambda m: own_slim(shop, m) * shop.counts(m) ** -0.15
    yield "cosine of shoppers' sets, every market alone", lambda m: by_cosine(shop, m)
    cosine = CosineScorer(str(shop.workspace.folder("model")))
    yield "the market model's cosine alone", lambda m: cosine.score(shop.arrays, m, shop.blocks[m][0])


def additions(shop: Shop) -> Iterator[tuple[str, Scores]]:
    cosine = CosineScorer(str(shop.workspace.folder("model")))
    yield "the cosine", lambda m: cosine.score(shop.arrays, m, shop.blocks[m][0])
    yield "SLIM over all markets", joint(shop, fit_slim(shop.gram, 1.0, 30.0)[0])
    yield "popularity (log, / 100)", lambda m: np.log(shop.counts(m))[None] / 100


def joint(shop: Shop, B: np.ndarray | sparse.csr_matrix) -> Scores:
    """Of a B over all items."""

    def scores(market: int) -> np.ndarray:
        block = B[shop.items(market)][:, shop.items(market)]
        return shop.through(market, block.toarray() if sparse.issparse(block) else block)

    return scores


def own_slim(
    shop: Shop, market: int, l1: float = 1.0, l2: float = 15.0, others: float = 0.0, diagonal: float = 1.0
) -> np.ndarray:
    A = shop.own_gram(market, others)
    if diagonal != 1.0:
        A.setdiag(diagonal * A.diagonal())
    return shop.through(market, fit_slim(A, l1, l2)[0].toarray())


def by_cosine(shop: Shop, market: int) -> np.ndarray:
    A = shop.own_gram(market).toarray()
    np.fill_diagonal(A, 0)
    scale = shop.counts(market) ** -0.5
    return shop.through(market, scale[:, None] * A * scale)


if __name__ == "__main__":
    assert Path(sys.argv[1]).is_dir(), "python benchmarks/trials.py <workspace>"
    main()
