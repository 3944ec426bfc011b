"""Bi-TGCF (Liu et al. 2020, CIKM, eq. 5-9): LightGCN in every market, and a transfer between them after every layer.

    E_m^(k+1) = D^-1/2 A_m D^-1/2 E_m^(k) and then, for an item that several markets sell,
    e_m <- (lambda e_m + (1 - lambda) mean_k e_k + sum_k n_k e_k / sum_k n_k) / 2,   n_k its train pairs in market k
    E = mean of E^(0) .. E^(K),   y_ui = e_u' e_i;   loss: that of LightGCN

The original transfers users of two domains; markets share items instead, and there are M of them. The mean is over the
other markets with train pairs of the item: one in which it has none only receives. The encoder is LightGCN, as in the
comparison of M3Rec (Sec. 1): the original's own (A + I, layers side by side, cross-entropy) overfits in a few epochs.
Cost of a step: 8 K N d flops and 4 K nnz(transfer) d.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from m3rec_spark.models.layout import Layout
from m3rec_spark.models.lightgcn import batch_norms, bipartite, normalised_adjacency
from m3rec_spark.models.pair_loss import bpr, whole_batch
from m3rec_spark.models.pairs import Pairs, PairScores
from m3rec_spark.models.sparse import SparseProduct

if TYPE_CHECKING:
    from m3rec_spark.data.arrays import MarketArrays


class BiTGCF(nn.Module):
    """Args: dimension d; layers K; keep lambda, the share of the market's own vector; l2 weight of the penalty."""

    def __init__(
        self, arrays: MarketArrays, layout: Layout, dimension: int, layers: int, keep: float, l2: float
    ) -> None:
        super().__init__()
        self.layout, self.layers, self.l2 = layout, layers, l2
        graph = normalised_adjacency(bipartite(arrays, np.asarray(arrays.slots), layout.n_slots))
        self.propagate = SparseProduct(graph)
        self.transfer = SparseProduct(transfer_matrix(arrays, keep))
        self.start = nn.Parameter(nn.init.normal_(torch.empty(layout.n_rows + layout.n_slots, dimension), std=0.1))

    def vectors(self) -> tuple[Tensor, Tensor]:
        """(R, d) users, (S, d) items by slot."""
        sizes = [self.layout.n_rows, self.layout.n_slots]
        layer: Tensor = self.start
        total: Tensor = self.start
        for _ in range(self.layers):
            users, items = torch.split(self.propagate(layer), sizes)
            layer = torch.cat([users, self.transfer(items)])
            total = total + layer
        users, items = torch.split(total / (self.layers + 1), sizes)
        return users, items

    def loss(self, pairs: Pairs) -> Tensor:
        """BPR and the penalty, mean over the pairs."""
        users, items = self.vectors()
        rows, slots = whole_batch(pairs)
        user, item = F.embedding(rows, users), F.embedding(slots, items)
        penalty = self.l2 * batch_norms(self.start, rows, self.layout.n_rows + slots)
        return (bpr((item @ user[:, :, None])[..., 0]) + penalty) / len(rows)

    def scorer(self) -> PairScores:
        """Scores of the model as it stands; the propagation is done once."""
        users, items = self.vectors()
        return lambda _, rows, slots: users[rows] @ items[slots].T


def transfer_matrix(arrays: MarketArrays, keep: float) -> sp.csr_matrix:
    """(S, S): row (m, i) mixes the slots of item i in all markets; one of an item that one market sells is a unit row.

    >>> from m3rec_spark.data.synthetic import generate_arrays
    >>> rows = transfer_matrix(generate_arrays(3, 30, 4, 2, 3.0, 2, 0), 0.5).sum(axis=1)
    >>> float(abs(rows - 1).max()) < 1e-6
    True
    """
    n_slots, counts = len(arrays.slot_items), np.asarray(arrays.slot_counts, np.float64)
    sold = sp.csr_matrix(
        (np.ones(n_slots), (np.arange(n_slots), arrays.slot_items)), shape=(n_slots, arrays.n_items)
    )  # fmt: skip
    same = sp.coo_matrix(sold @ sold.T)  # the slots of one item
    gives = counts > 0
    others = sold @ (sold.T @ gives.astype(np.float64)) - gives
    all_counts = sold @ (sold.T @ counts)
    own = same.row == same.col
    mixed = np.where(own, keep, (1 - keep) * gives[same.col] / np.maximum(others, 1)[same.row])
    common = counts[same.col] / np.maximum(all_counts, 1)[same.row]
    values = np.where(others[same.row] == 0, own, (mixed + common) / 2)
    return sp.csr_matrix((values.astype(np.float32), (same.row, same.col)), shape=(n_slots, n_slots))
