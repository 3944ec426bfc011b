"""The market model against explicit matrices, losses by hand, and dense autograd."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from m3rec_spark.models.m3rec import (
    M3Rec,
    Pairs,
    SparseProduct,
    margin_loss,
    market_similarity,
    softmax_loss,
    unit,
)

D = 5
INDPTR, SLOTS = np.array([0, 2, 3, 6, 6]), np.array([0, 1, 2, 3, 4, 5])  # 2 + 2 users, 3 + 3 slots; the last has none


@pytest.fixture
def blocks() -> sp.csr_matrix:
    """Two markets of three items; slot 2's and slot 4's rows are empty, the others sum to one."""
    first = sp.csr_matrix([[0, 0.5, 0.5], [1, 0, 0], [0, 0, 0]])
    second = sp.csr_matrix([[0, 0.25, 0.75], [0, 0, 0], [1, 0, 0]])
    return market_similarity([first, second])


def trained(similarity: sp.csr_matrix | None, prior: bool = True) -> M3Rec:
    """A model whose local parts are not zero any more."""
    generator = np.random.default_rng(3)
    model = M3Rec(4, 6, D, similarity, generator.normal(size=(6, D)).astype(np.float32) if prior else None, seed=1)
    with torch.no_grad():
        model.v_loca += torch.from_numpy(generator.normal(size=(6, D), scale=0.3))
        model.u_loca.weight += torch.from_numpy(generator.normal(size=(4, D), scale=0.3))
    return model


def bags(rows: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    slots = [SLOTS[INDPTR[r] : INDPTR[r + 1]] for r in rows]
    begins = np.concatenate([[0], np.cumsum([len(s) for s in slots])[:-1]]).astype(np.int64)
    return torch.tensor(rows), torch.from_numpy(np.concatenate(slots).astype(np.int64)), torch.from_numpy(begins)


def pairs(shared: bool = True) -> Pairs:
    """Three pairs: (row 0, slot 1) and (row 1, slot 2) of market 0, (row 2, slot 4) of market 1."""
    rows, slots, begins = bags([0, 1, 2])
    negatives = (torch.tensor([0, 1]), torch.tensor([3, 5]))
    if not shared:
        negatives = (torch.tensor([[0, 2], [0, 1]]), torch.tensor([[3, 5]]))
    return Pairs(rows, torch.tensor([1, 2, 4]), slots, begins, [2, 1], negatives)


def test_similarity_is_block_diagonal(blocks: sp.csr_matrix) -> None:
    dense = blocks.toarray()
    assert dense.shape == (6, 6)
    assert not dense[:3, 3:].any()
    assert not dense[3:, :3].any()
    assert dense[3, 5] == 0.75


def test_users_are_eq_11(blocks: sp.csr_matrix) -> None:
    """Embedding-bag == Normalize(X B) V + U-Loca, with the explicit matrices."""
    model = trained(blocks)
    x = sp.csr_matrix((np.ones(6), SLOTS, INDPTR), shape=(4, 6)).toarray()
    mixed = x @ blocks.toarray()
    total = mixed.sum(axis=1, keepdims=True)
    x_hat = np.divide(mixed, total, out=np.zeros_like(mixed), where=total > 0)
    v = (model.v_glob + model.v_loca).detach().numpy()
    expected = x_hat @ v + model.u_loca.weight.detach().numpy()
    np.testing.assert_allclose(model.users(*bags([0, 1, 2, 3])).detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    assert total[1] == 0  # row 1's only item has an empty row of B: nothing but U-Loca, as for row 3 without history


def test_exported_arrays_serve_the_same_users(blocks: sp.csr_matrix) -> None:
    model = trained(blocks)
    arrays = model.export_arrays()
    np.testing.assert_array_equal(arrays["history_weights"], [1, 1, 0, 1, 0, 1])
    assert not arrays["history_vectors"][[2, 4]].any()
    mean = arrays["history_vectors"][[3, 4, 5]].sum(axis=0) / 2  # row 2: slots 3, 4, 5, of which 4 counts nothing
    np.testing.assert_allclose(mean + arrays["user_vectors"][2], model.users(*bags([2]))[0].detach(), rtol=1e-5)
    np.testing.assert_array_equal(arrays["item_vectors"], (model.v_glob + model.v_loca).detach())


def test_without_intra_a_user_is_the_mean_of_his_items() -> None:
    model = trained(None)
    v = (model.v_glob + model.v_loca).detach()
    expected = (v[3] + v[4] + v[5]) / 3 + model.u_loca.weight.detach()[2]
    torch.testing.assert_close(model.users(*bags([2]))[0].detach(), expected)


def test_without_inter_items_start_at_random_and_are_only_local(blocks: sp.csr_matrix) -> None:
    model = M3Rec(4, 6, D, blocks, None, seed=1)
    assert not model.v_glob.any()
    assert (model.v_loca.norm(dim=1) > 0).all()
    assert torch.equal(model.v_loca, M3Rec(4, 6, D, blocks, None, seed=1).v_loca)
    assert not torch.equal(model.v_loca, M3Rec(4, 6, D, blocks, None, seed=2).v_loca)
    assert torch.equal(model.items(torch.arange(6)), model.v_loca)


def test_with_both_the_local_parts_start_at_zero(blocks: sp.csr_matrix) -> None:
    model = M3Rec(4, 6, D, blocks, np.ones((6, D), np.float32))
    assert not model.v_loca.any()
    assert not model.u_loca.weight.any()


def test_shapes_are_checked(blocks: sp.csr_matrix) -> None:
    with pytest.raises(ValueError, match=r"\(7, 7\)"):
        M3Rec(4, 7, D, blocks)
    with pytest.raises(ValueError, match=r"\(6, 5\), got \(6, 4\)"):
        M3Rec(4, 6, D, None, np.ones((6, 4), np.float32))


@pytest.fixture
def axes() -> M3Rec:
    """d = 2, unit item vectors: slots 0 and 3 at 0 degrees, 1 and 4 at 60, 2 and 5 at 180; users: means."""
    angles = np.deg2rad([0, 60, 180, 0, 60, 180])
    return M3Rec(4, 6, 2, None, np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32))


def one_pair(negatives: list[int], positive: int = 1) -> Pairs:
    """User 0 with history {slot 0}: his vector is slot 0's, at 0 degrees."""
    zero = torch.tensor([0])
    return Pairs(zero, torch.tensor([positive]), zero, zero, [1], (torch.tensor(negatives),))


def test_margin_loss_by_hand(axes: M3Rec) -> None:
    # y_pos = cos 60 = 0.5; negatives: cos 0 - 0.2 = 0.8, cos 180 < 0.2 -> 0; mean 0.4
    assert margin_loss(axes, one_pair([0, 2]), gamma=0.2).item() == pytest.approx(0.5 + 0.4, abs=1e-5)


def test_softmax_loss_by_hand(axes: M3Rec) -> None:
    # logits at temperature 0.5: positive 1, negatives 2 and -2
    expected = -math.log(math.e / (math.e + math.e**2 + math.e**-2))
    assert softmax_loss(axes, one_pair([0, 2]), temperature=0.5).item() == pytest.approx(expected, abs=1e-5)


def test_softmax_counts_a_positive_among_the_negatives_once(axes: M3Rec) -> None:
    without, among = (softmax_loss(axes, one_pair(slots), 0.5).item() for slots in ([0, 2], [0, 1, 2]))
    assert among == pytest.approx(without, abs=1e-6)


def test_the_loss_of_markets_is_the_mean_over_their_pairs(axes: M3Rec) -> None:
    both = Pairs(torch.tensor([0, 2]), torch.tensor([1, 4]), torch.tensor([0, 3]), torch.tensor([0, 1]), [1, 1],
                 (torch.tensor([0, 2]), torch.tensor([3])))  # fmt: skip
    alone = margin_loss(axes, one_pair([0, 2]), 0.2).item()  # 0.9
    other = 0.5 + 0.8  # market 1: positive at 60 degrees, one negative at 0
    assert margin_loss(axes, both, 0.2).item() == pytest.approx((alone + other) / 2, abs=1e-5)


@pytest.mark.parametrize("kind", ["softmax", "margin", "margin, own negatives"])
def test_gradients_equal_a_dense_reference(blocks: sp.csr_matrix, kind: str) -> None:
    model, batch = trained(blocks), pairs(shared=kind != "margin, own negatives")
    loss = softmax_loss(model, batch, 0.3) if kind == "softmax" else margin_loss(model, batch, 0.1)
    (loss + 0.01 * model.penalty()).backward()

    v_loca = model.v_loca.detach().clone().requires_grad_()
    u_loca = model.u_loca.weight.detach().clone().requires_grad_()
    v = model.v_glob + v_loca
    x = torch.from_numpy(sp.csr_matrix((np.ones(6), SLOTS, INDPTR), shape=(4, 6)).toarray() @ blocks.toarray())
    x_hat = (x / x.sum(dim=1, keepdim=True).clamp(min=1e-30)).float()
    y = unit(x_hat @ v + u_loca) @ unit(v).T
    reference = 0.01 * v_loca.square().sum()
    shared = {0: [0, 1], 1: [0, 1], 2: [3, 5]}
    own = {0: [0, 2], 1: [0, 1], 2: [3, 5]}
    for row, positive in ((0, 1), (1, 2), (2, 4)):
        rest = torch.stack([y[row, k] for k in (own if "own" in kind else shared)[row]])
        if kind == "softmax":
            rivals = [k for k in shared[row] if k != positive]
            logits = torch.stack([y[row, positive], *(y[row, k] for k in rivals)]) / 0.3
            reference = reference - torch.log_softmax(logits, dim=0)[0] / 3
        else:
            reference = reference + ((1 - y[row, positive]) + torch.relu(rest - 0.1).mean()) / 3
    reference.backward()
    torch.testing.assert_close(loss.detach() + 0.01 * model.penalty().detach(), reference.detach())
    torch.testing.assert_close(model.v_loca.grad, v_loca.grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.u_loca.weight.grad.to_dense(), u_loca.grad, rtol=1e-4, atol=1e-6)


def test_a_step_touches_the_batch_users_only(blocks: sp.csr_matrix) -> None:
    model = trained(blocks)
    before = model.u_loca.weight.detach().clone()
    stepper = torch.optim.SparseAdam([model.u_loca.weight], lr=0.1)
    softmax_loss(model, pairs(), 0.1).backward()
    assert model.u_loca.weight.grad.is_sparse
    stepper.step()
    changed = (model.u_loca.weight != before).any(dim=1)
    assert changed.tolist() == [True, True, True, False]


def test_a_user_without_history_gets_a_finite_gradient(blocks: sp.csr_matrix) -> None:
    model = M3Rec(4, 6, D, blocks, np.random.default_rng(0).normal(size=(6, D)).astype(np.float32))
    empty = torch.tensor([], dtype=torch.int64)
    batch = Pairs(torch.tensor([3]), torch.tensor([4]), empty, torch.tensor([0]), [1], (torch.tensor([3, 5]),))
    softmax_loss(model, batch, 0.1).backward()
    gradient = model.u_loca.weight.grad.to_dense()
    assert torch.isfinite(gradient).all()
    assert gradient[3].abs().sum() > 0


def test_sparse_product_and_its_gradient() -> None:
    matrix = sp.random(7, 4, density=0.4, format="csr", random_state=0, dtype=np.float64)
    dense = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = torch.arange(21.0).reshape(7, 3)
    (SparseProduct(matrix)(dense) * weights).sum().backward()
    torch.testing.assert_close(dense.grad, torch.from_numpy(matrix.toarray().T).float() @ weights)
    torch.testing.assert_close(
        SparseProduct(matrix)(dense.detach()), torch.from_numpy(matrix.toarray()).float() @ dense.detach()
    )
