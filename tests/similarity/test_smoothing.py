from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import sparse
from torch import Tensor

from m3rec_spark.similarity.smoothing import Csr, RowSmoothing, Smoothing, plus_identity

CPU = torch.device("cpu")
N, D = 12, 5


@pytest.fixture
def similarity() -> sparse.csr_matrix:
    """Not symmetric, so that the transpose matters; row 4 and column 7 are empty."""
    dense = sparse.random(N, N, 0.3, random_state=2).toarray()
    dense[4], dense[:, 7] = 0, 0
    np.fill_diagonal(dense, 0)
    return sparse.csr_matrix(dense)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_smoothing_by_hand() -> None:
    b = sparse.csr_matrix([[0.0, 0.5], [0.0, 0.0]])
    V0 = torch.tensor([[1.0, 2.0], [4.0, 8.0]], dtype=torch.float64)
    smooth = Smoothing(b, CPU)
    assert smooth(V0).tolist() == [[1 + 2, 2 + 4], [4, 8]]
    assert smooth.backward(V0).tolist() == [[1, 2], [4 + 0.5, 8 + 1]]


def test_without_a_similarity_nothing_changes() -> None:
    V0 = normal(N, D)
    assert Smoothing(None, CPU)(V0) is V0
    assert Smoothing(None, CPU).backward(V0) is V0
    rows = torch.tensor([7, 2])
    (target, context), behind = RowSmoothing(None, CPU)((V0, 2 * V0), rows)
    assert torch.equal(target, V0[rows])
    assert torch.equal(context, 2 * V0[rows])
    assert behind.reached.tolist() == [7, 2]
    assert behind.backward(target) is target


def test_smoothing_equals_a_dense_product(similarity: sparse.csr_matrix) -> None:
    S = torch.from_numpy(similarity.toarray()) + torch.eye(N, dtype=torch.float64)
    V0, smooth = normal(N, D), Smoothing(similarity, CPU)
    torch.testing.assert_close(smooth(V0), S @ V0, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(smooth.backward(V0), S.T @ V0, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("columns", [63, 64, 65, 200])
def test_columns_are_multiplied_in_parts(similarity: sparse.csr_matrix, columns: int) -> None:
    V0 = normal(N, columns)
    torch.testing.assert_close(
        Csr.of(similarity, CPU) @ V0, torch.from_numpy(similarity @ V0.numpy()), rtol=1e-12, atol=0
    )


@pytest.mark.parametrize("rows", [[0, 4, 5, 11], [4], [7], list(range(N))])
def test_rows_only_equal_the_full_form(similarity: sparse.csr_matrix, rows: list[int]) -> None:
    """The same rows of V; and the same gradient, where the full form has 0 in the rows of V that are not asked for."""
    initial, wanted = (normal(N, D), normal(N, D, seed=2)), torch.tensor(rows)
    full, some = Smoothing(similarity, CPU), RowSmoothing(similarity, CPU)
    found, behind = some(initial, wanted)
    for half, part in zip(initial, found, strict=True):
        torch.testing.assert_close(part, full(half)[wanted], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(some.all(half), full(half), rtol=0, atol=0)
    of_rows = normal(len(rows), D, seed=3)
    of_all = torch.zeros(N, D, dtype=torch.float64).index_add_(0, wanted, of_rows)
    by_initial = torch.zeros(N, D, dtype=torch.float64)
    by_initial[behind.reached] = behind.backward(of_rows)
    torch.testing.assert_close(by_initial, full.backward(of_all), rtol=1e-12, atol=1e-14)


def test_rows_reach_only_what_is_behind_them(similarity: sparse.csr_matrix) -> None:
    V0 = normal(N, D)
    _, behind = RowSmoothing(similarity, CPU)((V0, V0), torch.tensor([4, 9]))
    assert behind.reached.tolist() == sorted({4, 9, *similarity[9].indices})


def test_rows_of_a_csr_in_any_order(similarity: sparse.csr_matrix) -> None:
    part = Csr.of(similarity, CPU).rows(torch.tensor([9, 4, 0]))
    rebuilt = sparse.csr_matrix((part.data.numpy(), part.columns.numpy(), part.starts.numpy()), shape=(3, N))
    assert (rebuilt != similarity[[9, 4, 0]]).nnz == 0


def test_plus_identity_keeps_the_similarity(similarity: sparse.csr_matrix) -> None:
    before = similarity.copy()
    np.testing.assert_array_equal(plus_identity(similarity).toarray(), before.toarray() + np.eye(N))
    assert (similarity != before).nnz == 0
