"""The market model: one set of item and user vectors per market, tied by the two global similarities (eq. 10-13).

    V_m = V-Glob_m + V-Loca_m                                                        eq. 10
    U_m = Normalize(X_m B_m) V_m + U-Loca_m                                          eq. 11
    y_ij = cosine(u_i, v_j);  margin or softmax loss over pairs and negatives        eq. 12
    loss + lambda ||V-Loca||^2                                                       eq. 13

All markets lie in one flat table of slots (one slot: an item in a market), B in one block-diagonal matrix. The rows of
B_m sum to one, so a row of Normalize(X_m B_m) V_m is the mean of (B_m V_m)_i over those items i of the user's history
whose row of B_m is not empty: a sparse product and an embedding-bag, and no users x items matrix.

Cost of a step: O((nnz(B) + S + pairs x (history + negatives)) d); no term in the number of users.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from m3rec_spark.models.pairs import Pairs
from m3rec_spark.models.sparse import SparseProduct

# Notation: S slots, R rows (users of all markets), P pairs of a batch, K negatives, d dimension.
FLOOR = 1e-6  # added to squared lengths: a user without history starts at u = 0, where the cosine has no gradient


class M3Rec(nn.Module):
    """The market model over plain arrays.

    Table 3's variants: `similarity=None` is the model without intra-market similarity (B_m = I: a user is the mean of
    V_m over the history); `prior=None` the one without inter-market similarity (no V-Glob: V_m = V-Loca_m, which then
    starts at random instead of zero, and each market learns on its own).

    Args:
        n_rows: R, users of all markets.
        n_slots: S, items of all markets.
        dimension: d.
        similarity: (S, S) block-diagonal B_m; rows sum to one or are empty. See `market_similarity`.
        prior: (S, d) V-Glob by slot; frozen.
        seed: of the random start, used only without a prior.
    """

    v_glob: Tensor
    h_glob: Tensor
    history_weights: Tensor

    def __init__(
        self,
        n_rows: int,
        n_slots: int,
        dimension: int,
        similarity: sp.csr_matrix | None = None,
        prior: NDArray[np.float32] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if similarity is not None and similarity.shape != (n_slots, n_slots):
            raise ValueError(f"similarity must be slots x slots ({n_slots}, {n_slots}), got {similarity.shape}")
        if prior is not None and prior.shape != (n_slots, dimension):
            raise ValueError(f"prior must be slots x dimension ({n_slots}, {dimension}), got {prior.shape}")
        self.smooth = SparseProduct(similarity) if similarity is not None else nn.Identity()
        nonempty = np.diff(similarity.indptr) > 0 if similarity is not None else np.ones(n_slots, bool)
        v_glob = torch.zeros(n_slots, dimension) if prior is None else torch.tensor(prior, dtype=torch.float32)
        self.register_buffer("history_weights", torch.from_numpy(nonempty.astype(np.float32)), persistent=False)
        self.register_buffer("v_glob", v_glob, persistent=False)
        self.register_buffer("h_glob", self.smooth(v_glob), persistent=False)  # constant: B V-Glob
        self.v_loca = nn.Parameter(torch.zeros(n_slots, dimension))
        self.u_loca = nn.Embedding(n_rows, dimension, sparse=True)  # sparse: a step costs the batch's users only
        nn.init.zeros_(self.u_loca.weight)
        if prior is None:
            generator = torch.Generator().manual_seed(seed)
            nn.init.normal_(self.v_loca, std=dimension**-0.5, generator=generator)

    def items(self, slots: Tensor) -> Tensor:
        """(len(slots), d) V_m of the slots, eq. 10."""
        return F.embedding(slots, self.v_glob) + F.embedding(slots, self.v_loca)

    def histories(self) -> Tensor:
        """(S, d) B_m V_m: what an item in a user's history adds to him; zero where the row of B_m is empty."""
        smoothed: Tensor = self.h_glob + self.smooth(self.v_loca)
        return smoothed

    def users(self, rows: Tensor, bag_slots: Tensor, bag_starts: Tensor, histories: Tensor | None = None) -> Tensor:
        """(P, d) user vectors, eq. 11.

        Args:
            rows: (P,) flat users.
            bag_slots: (T,) their histories, one after the other.
            bag_starts: (P,) where each begins.
            histories: of `histories()`, where they have been worked out already.
        """
        smoothed = self.histories() if histories is None else histories
        total = F.embedding_bag(bag_slots, smoothed, bag_starts, mode="sum")
        count = F.embedding_bag(bag_slots, self.history_weights[:, None], bag_starts, mode="sum")
        local: Tensor = self.u_loca(rows)
        return total / count.clamp(min=1) + local

    def penalty(self) -> Tensor:
        """||V-Loca||^2. Eq. 13 prints the norm; its square is what Adam codes call L2 and has a gradient at zero."""
        return self.v_loca.square().sum()

    @torch.no_grad()
    def export_arrays(self) -> dict[str, NDArray[np.float32]]:
        """What serves, on the host: item_vectors, history_vectors (S, d), history_weights (S,), user_vectors (R, d)."""
        tensors = {
            "item_vectors": self.v_glob + self.v_loca,
            "history_vectors": self.histories(),
            "history_weights": self.history_weights,
            "user_vectors": self.u_loca.weight,
        }
        return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}


def margin_loss(model: M3Rec, pairs: Pairs, gamma: float) -> Tensor:
    """Eq. 12, mean over the pairs: (1 - y_pos) + mean over negatives of max(0, y_neg - gamma)."""
    total = model.v_loca.new_zeros(())
    for user, positive, negative, _ in _by_market(model, pairs):
        total = total + (1 - (user * positive).sum(dim=1)).sum()
        total = total + F.relu(_against(user, negative) - gamma).mean(dim=1).sum()
    return total / len(pairs.rows)


def softmax_loss(model: M3Rec, pairs: Pairs, temperature: float) -> Tensor:
    """Mean over the pairs of -log softmax of the positive among itself and the negatives, of cosine / temperature.

    The negatives are distinct; a positive that is among the negatives counts once.
    """
    total = model.v_loca.new_zeros(())
    for user, positive, negative, known in _by_market(model, pairs):
        user = user / temperature
        liked = (user * positive).sum(dim=1)
        others = torch.logsumexp(_against(user, negative), dim=1)
        total = total + (torch.where(known, others, torch.logaddexp(others, liked)) - liked).sum()
    return total / len(pairs.rows)


def _by_market(model: M3Rec, pairs: Pairs) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Per market of the batch: users (p, d), positives (p, d), negatives (K, d) or (p, K, d), all of length one.

    The last of the four says (p,) whether the positive is among the negatives.
    """
    users = torch.split(unit(model.users(pairs.rows, pairs.bag_slots, pairs.bag_starts)), pairs.sizes)
    slots = [*torch.split(pairs.positives, pairs.sizes), *pairs.negatives]
    flat = torch.cat([part.flatten() for part in slots])  # one gather: each would have a gradient of S x d of its own
    items = torch.split(unit(model.items(flat)), [part.numel() for part in slots])
    markets = len(pairs.sizes)
    for user, positive, negative, slot, drawn in zip(
        users, items[:markets], items[markets:], slots[:markets], slots[markets:], strict=True
    ):
        known = (drawn == slot[:, None]).any(dim=1) if drawn.ndim == 2 else torch.isin(slot, drawn)
        yield user, positive, negative.view(*drawn.shape, -1), known


def _against(user: Tensor, negative: Tensor) -> Tensor:
    """(p, K) products with shared (K, d) or own (p, K, d) negatives."""
    return user @ negative.T if negative.ndim == 2 else torch.einsum("pd,pkd->pk", user, negative)


def unit(vectors: Tensor) -> Tensor:
    """The vectors at length one (FLOOR keeps zero at zero, with a finite gradient)."""
    return vectors * (vectors.square().sum(dim=-1, keepdim=True) + FLOOR).rsqrt()


def market_similarity(tailored: Sequence[sp.csr_matrix]) -> sp.csr_matrix:
    """(S, S) block-diagonal B_m of the markets' tailored, re-normalised blocks (footnote 2 of the paper)."""
    return sp.block_diag(tailored, format="csr", dtype=np.float32)
