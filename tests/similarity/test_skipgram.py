from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import sparse, stats
from torch import Tensor

from m3rec_spark.schema import CapacityError
from m3rec_spark.similarity import skipgram
from m3rec_spark.similarity.skipgram import (
    Noise,
    Smoothing,
    exact_negative_loss,
    fit_item_vectors,
    pair_weights,
    positive_loss,
    shared_negative_loss,
)

N, D, L, WINDOW, NEGATIVES = 9, 4, 6, 2, 3
CPU = torch.device("cpu")


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
def initial() -> Tensor:
    return torch.randn(N, 2 * D, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.fixture
def similarity() -> sparse.csr_matrix:
    return sparse.random(N, N, 0.3, format="csr", random_state=2)  # not symmetric: the transpose matters


def pairs(walks: Tensor) -> list[tuple[int, int]]:
    """Every (item, context item) by the definition."""
    return [
        (int(walk[i]), int(walk[j])) for walk in walks for i in range(L) for j in range(L) if 0 < abs(i - j) <= WINDOW
    ]


def gradient(loss: Tensor, of: Tensor) -> np.ndarray:
    return torch.autograd.grad(loss, of)[0].numpy()


def weights() -> Tensor:
    return pair_weights(L, WINDOW).double()


def test_pair_weights_by_hand() -> None:
    assert pair_weights(4, 2).tolist() == [[0, 1, 1, 0], [1, 0, 1, 1], [1, 1, 0, 1], [0, 1, 1, 0]]


def test_smoothing_by_hand() -> None:
    b = sparse.csr_matrix([[0.0, 0.5], [0.0, 0.0]])
    V0 = torch.tensor([[1.0, 2.0], [4.0, 8.0]], dtype=torch.float64)
    assert Smoothing(b, CPU)(V0).tolist() == [[1 + 2, 2 + 4], [4, 8]]
    assert Smoothing(None, CPU)(V0) is V0


def test_gradient_equals_a_dense_reference(walks: Tensor, initial: Tensor, similarity: sparse.csr_matrix) -> None:
    """Eq. 8 with a dense B, eq. 9 pair by pair; the 4 drawn items, one of them twice, weigh 3 / 4 each."""
    drawn = torch.tensor([1, 5, 5, 8])
    target, context = torch.split(Smoothing(similarity, CPU)(initial), D, dim=1)
    loss = positive_loss(target, context, walks, weights())
    loss = loss + shared_negative_loss(target, context, walks, weights(), drawn, NEGATIVES)

    V = (torch.from_numpy(similarity.toarray()) + torch.eye(N, dtype=torch.float64)) @ initial
    reference = torch.zeros((), dtype=torch.float64)
    for i, j in pairs(walks):
        reference = reference - F.logsigmoid(V[i, :D] @ V[j, D:])
        for k in drawn:
            reference = reference - 3 / 4 * F.logsigmoid(-V[i, :D] @ V[k, D:])
    torch.testing.assert_close(loss, reference, rtol=1e-12, atol=0)
    np.testing.assert_allclose(gradient(loss, initial), gradient(reference, initial), rtol=1e-10, atol=1e-12)


def test_exact_mode_pair_by_pair(walks: Tensor, initial: Tensor) -> None:
    per_walk = int(weights().count_nonzero())
    drawn = torch.randint(N, (len(walks), per_walk, NEGATIVES), generator=torch.Generator().manual_seed(3))
    target, context = torch.split(initial, D, dim=1)
    loss = exact_negative_loss(target, context, walks, weights(), drawn)
    reference = torch.zeros((), dtype=torch.float64)
    for (i, _), negatives in zip(pairs(walks), drawn.reshape(-1, NEGATIVES), strict=True):
        for k in negatives:
            reference = reference - F.logsigmoid(-target[i] @ context[k])
    torch.testing.assert_close(loss, reference, rtol=1e-12, atol=0)
    np.testing.assert_allclose(gradient(loss, initial), gradient(reference, initial), rtol=1e-10, atol=1e-12)


def test_shared_negatives_expect_the_exact_gradient(walks: Tensor, initial: Tensor) -> None:
    """Both losses are sums over draws, so their expectations are sums over items by probability: no sampling error."""
    probability = torch.rand(N, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    probability /= probability.sum()
    target, context = torch.split(initial, D, dim=1)
    per_walk = int(weights().count_nonzero())
    shared = exact = torch.zeros((), dtype=torch.float64)
    for k in range(N):
        one = torch.tensor([k])
        alike = torch.full((len(walks), per_walk, NEGATIVES), k)
        shared = shared + probability[k] * shared_negative_loss(target, context, walks, weights(), one, NEGATIVES)
        exact = exact + probability[k] * exact_negative_loss(target, context, walks, weights(), alike)
    torch.testing.assert_close(shared, exact, rtol=1e-12, atol=0)
    np.testing.assert_allclose(gradient(shared, initial), gradient(exact, initial), rtol=1e-10, atol=1e-12)


def test_shared_loss_is_the_mean_over_its_draws(walks: Tensor, initial: Tensor) -> None:
    target, context = torch.split(initial, D, dim=1)

    def loss(*drawn: int) -> Tensor:
        return shared_negative_loss(target, context, walks, weights(), torch.tensor(drawn), NEGATIVES)

    torch.testing.assert_close(loss(2, 7, 7), (loss(2) + 2 * loss(7)) / 3, rtol=1e-12, atol=0)


def test_noise_follows_degree_to_the_three_quarters() -> None:
    degrees = np.array([0, 16, 81, 0, 1, 256, 0])  # 8 : 27 : 1 : 64
    drawn = Noise(degrees, torch.Generator().manual_seed(5)).draw(50, 400)
    assert drawn.shape == (50, 400)
    counts = np.bincount(drawn.reshape(-1).numpy(), minlength=7)
    assert counts[degrees == 0].sum() == 0
    assert stats.chisquare(counts[[1, 2, 4, 5]], np.array([8, 27, 1, 64]) * 200).pvalue > 1e-3


SETTINGS = {"dimension": 8, "window": 2, "negatives": 3, "shared": 16, "epochs": 6, "batch_walks": 8}


def two_shops() -> tuple[np.ndarray, np.ndarray]:
    """Walks within items 0-4 and within 5-9; item 10 is in none."""
    rng = np.random.default_rng(0)
    low = rng.integers(0, 5, (60, 8))
    return np.concatenate([low, low + 5]).astype(np.int32), np.r_[np.full(10, 7), 0]


def fit(seed: int = 1, similarity: sparse.csr_matrix | None = None, exact: bool = False, **changed: int) -> np.ndarray:
    walks, degrees = two_shops()
    settings = {**SETTINGS, **changed}
    return fit_item_vectors(walks, similarity, degrees, learning_rate=0.05, seed=seed, exact=exact, **settings)


@pytest.mark.parametrize("exact", [False, True])
def test_walked_together_means_alike(exact: bool) -> None:
    vectors = fit(exact=exact)
    assert vectors.shape == (11, 8)
    assert vectors.dtype == np.float32
    unit = vectors[:10] / np.linalg.norm(vectors[:10], axis=1, keepdims=True)
    cosine = unit @ unit.T
    within = np.concatenate([cosine[:5, :5][~np.eye(5, dtype=bool)], cosine[5:, 5:][~np.eye(5, dtype=bool)]])
    assert within.min() > cosine[:5, 5:].max() + 0.2


def test_smoothing_reaches_an_item_that_no_walk_visits() -> None:
    link = sparse.csr_matrix(([1.0], ([10], [0])), shape=(11, 11), dtype=np.float32)  # item 10 is like item 0
    vectors = fit(similarity=link)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert (unit[10] @ unit[:5].T).mean() > (unit[10] @ unit[5:10].T).mean() + 0.2


def test_same_seed_same_bytes() -> None:
    assert fit().tobytes() == fit().tobytes()
    assert fit(seed=2).tobytes() != fit().tobytes()


def test_loss_falls_and_is_told() -> None:
    walks, degrees = two_shops()
    told: list[tuple[int, float]] = []
    fit_item_vectors(
        walks, None, degrees, learning_rate=0.05, seed=1, on_epoch=lambda *told_now: told.append(told_now), **SETTINGS
    )
    assert [epoch for epoch, _ in told] == list(range(6))
    assert told[-1][1] < told[0][1] - 0.1


def test_the_learning_rate_falls_linearly_to_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = []

    class Watched(torch.optim.Adam):
        def step(self, *arguments: Any, **named: Any) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(*arguments, **named)

    monkeypatch.setattr(torch.optim, "Adam", Watched)
    walks = np.tile(np.array([[0, 1, 2, 1]], np.int32), (4, 1))
    skipgram.fit_item_vectors(
        walks, None, np.array([1, 2, 1]), dimension=2, window=2, negatives=1, shared=2, epochs=2, batch_walks=2,
        learning_rate=0.4, seed=0,
    )  # fmt: skip
    assert rates == pytest.approx([0.4, 0.3, 0.2, 0.1])  # 2 epochs of 2 batches


def test_each_walk_is_read_once_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = skipgram.positive_loss

    def spy(target: Tensor, context: Tensor, walks: Tensor, weights: Tensor) -> Tensor:
        seen.append(walks.numpy().copy())
        return original(target, context, walks, weights)

    monkeypatch.setattr(skipgram, "positive_loss", spy)
    fit(batch_walks=50, epochs=2)  # 120 walks: 50, 50, 20
    assert [len(batch) for batch in seen] == [50, 50, 20] * 2
    for epoch in (seen[:3], seen[3:]):
        assert sorted(map(tuple, np.concatenate(epoch))) == sorted(map(tuple, two_shops()[0]))
    assert (seen[0] != seen[3]).any()


def test_plan_refuses() -> None:
    assert skipgram.plan(100, 1000, 40, 8, 16, 4) > 4 * (12 * 100 * 8 + 1000 * 40)
    with pytest.raises(CapacityError, match=r"skip-gram on 1,000,000,000,000 items.*skipgram.batch_walks"):
        skipgram.plan(10**12, 1000, 40, 128, 16, 4)
