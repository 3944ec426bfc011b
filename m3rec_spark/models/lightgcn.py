"""LightGCN (He et al. 2020, arXiv:2002.02126, eq. 3-8, 15), on the merged graph of all markets' users and items.

    E^(k+1) = D^-1/2 A D^-1/2 E^(k),   E = mean of E^(0) .. E^(K),   y_ui = e_u' e_i
    loss: BPR + l2 ||E^(0)||^2 over the rows of the batch

Cost of a step: 8 K N d flops for N train pairs, both directions and the way back, and Adam on all (R + n) d numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from m3rec_spark.models.layout import Layout
from m3rec_spark.models.pair_loss import bpr, whole_batch
from m3rec_spark.models.pairs import Pairs, PairScores
from m3rec_spark.models.sparse import SparseProduct

if TYPE_CHECKING:
    from m3rec_spark.data.arrays import MarketArrays


class LightGCN(nn.Module):
    """Args: dimension d; layers K; l2 weight of the penalty."""

    def __init__(self, arrays: MarketArrays, layout: Layout, dimension: int, layers: int, l2: float) -> None:
        super().__init__()
        self.layout, self.layers, self.l2 = layout, layers, l2
        self.propagate = SparseProduct(normalised_adjacency(bipartite(arrays, arrays.items, arrays.n_items)))
        self.start = nn.Parameter(nn.init.normal_(torch.empty(layout.n_rows + layout.n_items, dimension), std=0.1))

    def vectors(self) -> tuple[Tensor, Tensor]:
        """(R, d) users, (S, d) items by slot."""
        users, items = self.propagated()
        return users, items[self.layout.slot_item]

    def propagated(self) -> tuple[Tensor, Tensor]:
        """(R, d) users, (n, d) items: of an item, the same in all markets."""
        layer, total = self.start, self.start
        for _ in range(self.layers):
            layer = self.propagate(layer)
            total = total + layer
        users, items = torch.split(total / (self.layers + 1), [self.layout.n_rows, self.layout.n_items])
        return users, items

    def loss(self, pairs: Pairs) -> Tensor:
        """BPR and the penalty, mean over the pairs."""
        users, items = self.propagated()
        rows, slots = whole_batch(pairs)
        index = self.layout.slot_item[slots]
        user, item = F.embedding(rows, users), F.embedding(index, items)
        penalty = self.l2 * batch_norms(self.start, rows, self.layout.n_rows + index)
        return (bpr((item @ user[:, :, None])[..., 0]) + penalty) / len(rows)

    def scorer(self) -> PairScores:
        """Scores of the model as it stands; the propagation is done once."""
        users, items = self.propagated()
        return lambda _, rows, slots: users[rows] @ items[self.layout.slot_item[slots]].T


def batch_norms(start: Tensor, rows: Tensor, others: Tensor) -> Tensor:
    """Squared length of the rows (P,) of E^(0), and the mean over K of the others' (P, K); summed over the pairs."""
    norms = F.embedding(others, start).square().sum() / others.shape[1]
    return F.embedding(rows, start).square().sum() + norms


def bipartite(arrays: MarketArrays, columns: NDArray[np.int32], n_columns: int) -> sp.csr_matrix:
    """(R, n_columns) ones at the train pairs. columns: (N,) of each pair."""
    return sp.csr_matrix((np.ones(len(columns), np.float32), columns, arrays.indptr), shape=(arrays.n_rows, n_columns))


def normalised_adjacency(pairs: sp.csr_matrix) -> sp.csr_matrix:
    """D^-1/2 A D^-1/2 of the bipartite graph, users first: (R + columns, R + columns)."""
    degrees = np.concatenate([np.asarray(pairs.sum(axis=axis)).ravel() for axis in (1, 0)])
    scale = np.divide(1.0, np.sqrt(degrees), out=np.zeros_like(degrees), where=degrees > 0)
    half = sp.diags(scale[: pairs.shape[0]]) @ pairs @ sp.diags(scale[pairs.shape[0] :])
    return sp.csr_matrix(sp.bmat([[None, half], [half.T, None]], format="csr"))
