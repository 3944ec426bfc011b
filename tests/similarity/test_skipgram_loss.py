from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from m3rec_spark.similarity.skipgram_loss import (
    Pair,
    Scratch,
    exact_negative_loss,
    exact_negatives,
    pair_weights,
    positive_loss,
    shared_negative_loss,
    sums,
)

N, D, L, WINDOW, NEGATIVES = 9, 4, 6, 2, 3


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small only wait for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def walks() -> Tensor:
    return torch.randint(N, (5, L), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def vectors() -> Pair:
    both = torch.randn(2, N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return both[0].clone().requires_grad_(), both[1].clone().requires_grad_()


def weights() -> Tensor:
    """Of the window, and uneven: the loss must take them as they come."""
    return pair_weights(L, WINDOW).double() * torch.linspace(0.5, 1.5, L * L, dtype=torch.float64).view(L, L)


def positives(vectors: Pair, walks: Tensor, of: Tensor) -> Tensor:
    """Pair by pair, by the definition."""
    loss = torch.zeros((), dtype=torch.float64)
    for walk in walks:
        for i in range(L):
            for j in range(L):
                if 0 < abs(i - j) <= WINDOW:
                    loss = loss - of[i, j] * F.logsigmoid(vectors[0][walk[i]] @ vectors[1][walk[j]])
    return loss


def negatives(vectors: Pair, walks: Tensor, of: Tensor, drawn: Tensor, share: float) -> Tensor:
    """Every pair against every drawn item."""
    loss = torch.zeros((), dtype=torch.float64)
    for walk in walks:
        for i in range(L):
            for k in drawn:
                loss = loss - share * of[i].sum() * F.logsigmoid(-vectors[0][walk[i]] @ vectors[1][k])
    return loss


def gradients(loss: Tensor, vectors: Pair) -> list[np.ndarray]:
    return [part.numpy() for part in torch.autograd.grad(loss, vectors, allow_unused=True)]


def plain(vectors: Pair) -> Pair:
    return vectors[0].detach(), vectors[1].detach()


def zeros() -> Pair:
    return torch.zeros(N, D, dtype=torch.float64), torch.zeros(N, D, dtype=torch.float64)


def test_pair_weights_by_hand() -> None:
    assert pair_weights(4, 2).tolist() == [[0, 1, 1, 0], [1, 0, 1, 1], [1, 1, 0, 1], [0, 1, 1, 0]]


def test_shrinking_windows_weigh_pairs_by_their_probability() -> None:
    """Windows of 1, 2 or 3: gap 1 is in all, gap 2 in two of three, gap 3 in one."""
    assert pair_weights(5, 3, shrink=True)[0].tolist() == pytest.approx([0, 1, 2 / 3, 1 / 3, 0])
    assert torch.equal(pair_weights(5, 3, shrink=True), pair_weights(5, 3, shrink=True).T)


def test_positive_loss_by_hand() -> None:
    """One walk a, b; v_a'c_b = ln 3, v_b'c_a = 0: -log 3/4 - log 1/2, the slope of the first score 3/4 - 1."""
    target = torch.tensor([[math.log(3.0)], [0.0]])
    context = torch.tensor([[5.0], [1.0]])
    loss, (by_target, by_context) = positive_loss(
        (target, context), torch.tensor([[0, 1]]), pair_weights(2, 1), Scratch()
    )
    assert float(loss) == pytest.approx(-math.log(3 / 4) - math.log(1 / 2))
    assert by_target.ravel().tolist() == pytest.approx([-1 / 4 * 1, -1 / 2 * 5])
    assert by_context.ravel().tolist() == pytest.approx([-1 / 2 * 0, -1 / 4 * math.log(3)])


def test_gradients_equal_autograd_pair_by_pair(walks: Tensor, vectors: Pair) -> None:
    """The 4 drawn items, one of them twice, weigh 3 / 4 each; items 3 and 6 are drawn but in no walk."""
    walks = walks.masked_fill((walks == 3) | (walks == 6), 0)
    drawn = torch.tensor([3, 5, 5, 6])
    loss, gradient = positive_loss(plain(vectors), walks, weights(), Scratch())
    expected = positives(vectors, walks, weights())
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    for found, wanted in zip(gradient, gradients(expected, vectors), strict=True):
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-10, atol=1e-12)

    loss = loss + shared_negative_loss(plain(vectors), walks, weights(), drawn, NEGATIVES, gradient, Scratch())
    expected = positives(vectors, walks, weights()) + negatives(vectors, walks, weights(), drawn, 3 / 4)
    torch.testing.assert_close(loss, expected.detach(), rtol=1e-12, atol=0)
    for found, wanted in zip(gradient, gradients(expected, vectors), strict=True):
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-10, atol=1e-12)


def test_scratch_of_larger_batches_leaves_no_trace(walks: Tensor, vectors: Pair) -> None:
    used = Scratch()
    drawn = torch.tensor([1, 5, 7])
    results = []
    for scratch in (used, used, Scratch()):
        batch = walks if not results else walks[:2]
        loss, gradient = positive_loss(plain(vectors), batch, weights(), scratch)
        shared_negative_loss(plain(vectors), batch, weights(), drawn, NEGATIVES, gradient, scratch)
        results.append((float(loss), *[part.clone() for part in gradient]))
    assert results[1][0] == results[2][0]
    assert all(torch.equal(a, b) for a, b in zip(results[1][1:], results[2][1:], strict=True))


def test_scores_far_out_give_finite_losses() -> None:
    """s(x) underflows below about -104 in float32: the loss stops growing there, the gradient stays."""
    vectors = (torch.tensor([[200.0], [-200.0]]), torch.ones(2, 1))
    loss, (by_target, _) = positive_loss(vectors, torch.tensor([[0, 1]]), pair_weights(2, 1), Scratch())
    assert 80 < float(loss) <= 200
    assert by_target.ravel().tolist() == [0, -1]


def test_exact_mode_pair_by_pair(walks: Tensor, vectors: Pair) -> None:
    per_walk = int(weights().count_nonzero())
    drawn = torch.randint(N, (len(walks), per_walk, NEGATIVES), generator=torch.Generator().manual_seed(3))
    pairs = [(w, i, j) for w in range(5) for i in range(L) for j in range(L) if 0 < abs(i - j) <= WINDOW]
    expected = torch.zeros((), dtype=torch.float64)
    for (w, i, j), own in zip(pairs, drawn.reshape(-1, NEGATIVES), strict=True):
        for k in own:
            expected = expected - weights()[i, j] * F.logsigmoid(-vectors[0][walks[w, i]] @ vectors[1][k])
    loss = exact_negative_loss(vectors, walks, weights(), drawn)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    added = zeros()
    torch.testing.assert_close(
        exact_negatives(plain(vectors), walks, weights(), drawn, added), expected.detach(), rtol=1e-12, atol=0
    )
    for found, wanted in zip(added, gradients(expected, vectors), strict=True):
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-10, atol=1e-12)


def test_exact_mode_takes_many_walks_in_turn(vectors: Pair) -> None:
    walks = torch.randint(N, (37, L), generator=torch.Generator().manual_seed(6))
    shape = (37, int(weights().count_nonzero()), NEGATIVES)
    drawn = torch.randint(N, shape, generator=torch.Generator().manual_seed(7))
    added = zeros()
    total = exact_negatives(plain(vectors), walks, weights(), drawn, added)
    at_once = exact_negative_loss(vectors, walks, weights(), drawn)
    torch.testing.assert_close(total, at_once.detach(), rtol=1e-12, atol=0)
    for found, wanted in zip(added, gradients(at_once, vectors), strict=True):
        np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-10, atol=1e-12)


def test_shared_negatives_expect_the_exact_gradient(walks: Tensor, vectors: Pair) -> None:
    """Both losses are sums over draws, so their expectations are sums over items by probability: no sampling error."""
    probability = torch.rand(N, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    probability /= probability.sum()
    per_walk = int(weights().count_nonzero())
    shared, exact = zeros(), zeros()
    shared_loss = exact_loss = torch.zeros((), dtype=torch.float64)
    for k in range(N):
        one, alike = zeros(), zeros()
        drawn, own = torch.tensor([k]), torch.full((len(walks), per_walk, NEGATIVES), k)
        loss = shared_negative_loss(plain(vectors), walks, weights(), drawn, NEGATIVES, one, Scratch())
        shared_loss = shared_loss + probability[k] * loss
        exact_loss = exact_loss + probability[k] * exact_negatives(plain(vectors), walks, weights(), own, alike)
        for into, part in zip((*shared, *exact), (*one, *alike), strict=True):
            into += probability[k] * part
    torch.testing.assert_close(shared_loss, exact_loss, rtol=1e-12, atol=0)
    for found, wanted in zip(shared, exact, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


def test_shared_loss_is_the_mean_over_its_draws(walks: Tensor, vectors: Pair) -> None:
    def loss(*drawn: int) -> Tensor:
        own = torch.tensor(drawn)
        return shared_negative_loss(plain(vectors), walks, weights(), own, NEGATIVES, zeros(), Scratch())

    torch.testing.assert_close(loss(2, 7, 7), (loss(2) + 2 * loss(7)) / 3, rtol=1e-12, atol=0)


@pytest.mark.parametrize("integers", [torch.int32, torch.int64])
def test_sums_by_hand(integers: torch.dtype) -> None:
    values = torch.tensor([[1.0, 2.0], [10.0, 20.0], [100.0, 200.0]])
    indices, starts = torch.tensor([2, 0, 0], dtype=integers), torch.tensor([0, 2, 2, 3], dtype=integers)
    assert sums(values, indices, starts).tolist() == [[101, 202], [0, 0], [1, 2]]
    weighted = sums(values, indices, starts, torch.tensor([1.0, 3.0, -1.0]))
    assert weighted.tolist() == [[103, 206], [0, 0], [-1, -2]]
