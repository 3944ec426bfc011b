from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import sparse, stats
from torch import Tensor

from m3rec_spark.errors import CapacityError, DivergedError
from m3rec_spark.similarity import skipgram
from m3rec_spark.similarity.probe import Probe
from m3rec_spark.similarity.skipgram import Noise, Renumbered, fit_item_vectors


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small only wait for each other's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


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


def fit(similarity: sparse.csr_matrix | None = None, **changed: Any) -> np.ndarray:
    walks, degrees = two_shops()
    settings: dict[str, Any] = {**SETTINGS, "learning_rate": 0.05, "seed": 1, **changed}
    return fit_item_vectors(walks, similarity, degrees, **settings)


LINK = sparse.csr_matrix(([1.0], ([10], [0])), shape=(11, 11), dtype=np.float32)  # item 10 is like item 0
MIXED = sparse.csr_matrix(([1.0, 0.5, 0.25], ([10, 0, 3], [0, 1, 7])), shape=(11, 11), dtype=np.float32)
ALL: dict[str, int] = {}
ROWS = {"smooth_rows_above": 1}


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("form", [ALL, ROWS])
@pytest.mark.parametrize("similarity", [None, MIXED])
def test_a_step_follows_the_gradient_of_a_dense_reference(
    monkeypatch: pytest.MonkeyPatch, exact: bool, form: dict[str, int], similarity: sparse.csr_matrix | None
) -> None:
    """Eq. 8 with a dense B and eq. 9 pair by pair through autograd; the step is plain descent for this once."""
    drawn: list[Tensor] = []
    draw = Noise.draw

    def remembered(noise: Noise, *shape: int) -> Tensor:
        drawn.append(draw(noise, *shape))
        return drawn[-1]

    class Descent(torch.optim.SGD):
        def __init__(self, params: Any, lr: float, fused: bool = False) -> None:
            super().__init__(params, lr=lr)

    monkeypatch.setattr(Noise, "draw", remembered)
    monkeypatch.setattr(torch.optim, "Adam", Descent)
    monkeypatch.setattr(torch.optim, "SparseAdam", Descent)
    told: list[float] = []
    one_step: dict[str, Any] = {"batch_walks": 120, "epochs": 1, "learning_rate": 50.0}
    found = fit(similarity, exact=exact, on_epoch=lambda _, loss, __: told.append(loss), **one_step, **form)

    walks, _ = two_shops()
    generator = torch.Generator().manual_seed(1)
    start = [torch.randn(11, 8, generator=generator).double() * 8**-0.5 for _ in range(2)]
    target, context = (half.requires_grad_() for half in start)
    S = torch.eye(11, dtype=torch.float64)
    if similarity is not None:
        S = S + torch.from_numpy(similarity.toarray())
    V, C = S @ target, S @ context
    order = torch.randperm(120, generator=generator).sort().values  # one batch: every walk, in order
    pairs = [(w, i, j) for w in order.tolist() for i in range(8) for j in range(8) if 0 < abs(i - j) <= 2]
    centres, others = (torch.tensor([int(walks[w, p]) for w, p in of]) for of in (
        [(w, i) for w, i, _ in pairs], [(w, j) for w, _, j in pairs]
    ))  # fmt: skip
    loss = -F.logsigmoid((V[centres] * C[others]).sum(1)).sum()
    if exact:
        loss = loss - F.logsigmoid(-(V[centres][:, None] * C[drawn[0].view(-1, 3)]).sum(2)).sum()
    else:
        loss = loss - 3 / 16 * F.logsigmoid(-V[centres] @ C[drawn[0]].T).sum()
    loss = loss / len(pairs)
    assert told == [pytest.approx(float(loss.detach()), rel=1e-6)]
    step = torch.autograd.grad(loss, target)[0]
    expected = S @ (target - 50 * step)
    np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-5, atol=1e-5)
    assert np.abs(50 * step.numpy()).max() > 0.5  # the tolerance is 1e-5 of a large step


@pytest.mark.parametrize("form", [{}, {"exact": True}, ROWS])
def test_walked_together_means_alike(form: dict[str, Any]) -> None:
    vectors = fit(**form)
    assert vectors.shape == (11, 8)
    assert vectors.dtype == np.float32
    unit = vectors[:10] / np.linalg.norm(vectors[:10], axis=1, keepdims=True)
    cosine = unit @ unit.T
    within = np.concatenate([cosine[:5, :5][~np.eye(5, dtype=bool)], cosine[5:, 5:][~np.eye(5, dtype=bool)]])
    assert within.min() > cosine[:5, 5:].max() + 0.2


@pytest.mark.parametrize("form", [ALL, ROWS])
def test_smoothing_reaches_an_item_that_no_walk_visits(form: dict[str, int]) -> None:
    vectors = fit(LINK, **form)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert (unit[10] @ unit[:5].T).mean() > (unit[10] @ unit[5:10].T).mean() + 0.2


@pytest.mark.parametrize("form", [ALL, ROWS])
def test_same_seed_same_bytes(form: dict[str, int]) -> None:
    assert fit(LINK, **form).tobytes() == fit(LINK, **form).tobytes()
    assert fit(LINK, seed=2, **form).tobytes() != fit(LINK, **form).tobytes()


def test_the_window_shrinks_on_demand() -> None:
    assert fit(shrink_window=True).tobytes() != fit().tobytes()
    assert fit(shrink_window=True, window=1).tobytes() == fit(window=1).tobytes()


@pytest.mark.parametrize("form", [ALL, ROWS])
def test_a_loss_that_is_no_number_ends_it(form: dict[str, int]) -> None:
    with pytest.raises(DivergedError, match=r"became (nan|inf) in epoch 1: lower skipgram\.learning_rate"):
        fit(MIXED, learning_rate=1e38, **form)
    with pytest.raises(DivergedError, match="in the last step: lower"):  # the loss before it is a number
        fit(MIXED, learning_rate=1e39, epochs=1, batch_walks=1000, **form)


def test_rows_are_chosen_by_size() -> None:
    """Both forms follow the same gradient and differ in Adam's moments and the order of sums: bytes tell which ran."""
    assert fit(LINK, smooth_rows_above=11).tobytes() == fit(LINK).tobytes()
    assert fit(LINK, smooth_rows_above=10).tobytes() == fit(LINK, **ROWS).tobytes()


def test_rows_that_no_batch_reaches_stay() -> None:
    """Item 10 is in no walk, never drawn, and nothing is smoothed by it."""
    start = torch.Generator().manual_seed(1)
    expected = (torch.randn(11, 8, generator=start) * 8**-0.5).numpy()
    found = fit(**ROWS)
    np.testing.assert_array_equal(found[10], expected[10])
    assert (found[:10] != expected[:10]).all()


def test_loss_falls_and_is_told() -> None:
    told: list[tuple[int, float, float | None]] = []
    fit(on_epoch=lambda *now: told.append(now))
    assert [epoch for epoch, _, _ in told] == list(range(6))
    assert told[-1][1] < told[0][1] - 0.1
    assert {auc for _, _, auc in told} == {None}


def test_the_probe_is_told_each_epoch(caplog: pytest.LogCaptureFixture) -> None:
    """Items of one shop against rivals of the other: the first epochs leave something to learn."""
    pairs = np.array([[a, b] for a in range(5) for b in range(5) if a != b], np.int32)
    probe = Probe(pairs, np.tile(np.arange(5, 10, dtype=np.int32), (len(pairs), 1)))
    told: list[float | None] = []
    vectors = fit(probe=probe, on_epoch=lambda *now: told.append(now[2]))
    assert len(told) == 6
    assert told[-1] == probe.auc(vectors) == 1.0
    assert "under-trained" not in caplog.text
    fit(probe=probe, learning_rate=1e-6)
    assert "no better than chance" in caplog.text


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

    def spy(vectors: Any, walks: Tensor, *others: Any) -> Any:
        seen.append(Renumbered.at_random(11).old[walks].numpy())
        return original(vectors, walks, *others)

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


def test_plan_counts_the_similarity_four_times() -> None:
    """As it comes, renumbered, in B + I, and in the transpose: a column number and a weight of 4 bytes each."""
    assert skipgram.plan(100, 1000, 40, 8, 16, 4, 10**6) - skipgram.plan(100, 1000, 40, 8, 16, 4) == 32 * 10**6


def test_new_numbers_are_a_permutation() -> None:
    """And the matrix is the same one under them."""
    items = Renumbered.at_random(50)
    assert items.old[items.new].tolist() == items.new[items.old].tolist() == list(range(50))
    assert items.old.tolist() != list(range(50))
    square = sparse.random(50, 50, 0.1, format="csr", random_state=1)
    found = items.matrix(square).toarray()
    np.testing.assert_array_equal(found[np.ix_(items.new, items.new)], square.toarray())
