"""The loop on a tiny model: it learns, stops, keeps the best, and says when it diverges."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from m3rec_spark.errors import DivergedError
from m3rec_spark.models.m3rec import M3Rec, softmax_loss
from m3rec_spark.models.pairs import Pairs
from m3rec_spark.training.loop import TrainState, fit, optimizers


def model() -> M3Rec:
    return M3Rec(3, 4, 3, None, np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32))


def batch() -> Pairs:
    """Users 0 and 1, each with one item of history and one other to be found."""
    two = torch.tensor([0, 1])
    return Pairs(two, torch.tensor([2, 3]), two, two, [2], (torch.tensor([0, 1, 2, 3]),))


def run(trained: M3Rec, scores: list[float], epochs: int, patience: int, state: TrainState | None = None) -> TrainState:
    """Validation gives the scores in turn, whatever the model does."""
    state = state or TrainState()
    given = iter(scores)
    started, ended = state.epoch, []
    fit(
        trained,
        optimizers(trained, 0.05),
        state,
        batches=lambda epoch: [batch(), batch()],
        loss=lambda pairs: softmax_loss(trained, pairs, 0.5),
        validate=lambda: {"score": next(given)},
        score="score",
        epochs=epochs,
        patience=patience,
        on_epoch_end=lambda state: ended.append(state.epoch),
    )
    assert ended == list(range(started + 1, state.epoch + 1))
    return state


def test_the_loss_falls() -> None:
    losses = [row["train/loss"] for row in run(model(), [0.0] * 30, epochs=30, patience=30).history]
    assert len(losses) == 30
    assert losses[-1] < 0.5 * losses[0]


def test_the_loss_of_an_epoch_is_the_mean_over_its_pairs() -> None:
    trained, state = model(), TrainState()
    one = torch.tensor([0])
    single = Pairs(one, one, one, one, [1], (one,))
    fit(
        trained,
        optimizers(trained, 0.05),
        state,
        batches=lambda epoch: [batch(), single],
        loss=lambda pairs: softmax_loss(trained, pairs, 0.5) * 0 + {2: 1.0, 1: 4.0}[len(pairs.rows)],
        validate=lambda: {"score": 0.0},
        score="score",
        epochs=1,
        patience=1,
        on_epoch_end=lambda state: None,
    )
    assert state.history[0]["train/loss"] == pytest.approx((2 * 1.0 + 1 * 4.0) / 3)


def test_it_stops_after_patience_and_ends_at_the_best_epoch() -> None:
    trained = model()
    state = run(trained, [0.1, 0.3, 0.2, 0.3, 0.25, 0.9], epochs=10, patience=3)
    assert (state.epoch, state.best_epoch, state.best_score) == (5, 2, 0.3)  # equal is not better
    only_two = model()
    run(only_two, [0.1, 0.3], epochs=2, patience=3)
    assert torch.equal(trained.v_loca, only_two.v_loca)
    assert torch.equal(trained.u_loca.weight, only_two.u_loca.weight)


def test_the_best_is_a_copy_not_a_view() -> None:
    trained = model()
    state = run(trained, [0.9, 0.1], epochs=2, patience=5)
    kept = state.best["v_loca"].clone()
    with torch.no_grad():
        trained.v_loca += 1
    assert torch.equal(state.best["v_loca"], kept)


def test_a_finished_state_trains_no_more() -> None:
    state = TrainState(epoch=4, best_epoch=4, best_score=0.5)
    assert run(model(), [], epochs=4, patience=2, state=state).history == []
    stopped = TrainState(epoch=4, best_epoch=2, best_score=0.5)
    assert run(model(), [], epochs=9, patience=2, state=stopped).history == []


def test_same_start_same_weights() -> None:
    one, two = model(), model()
    run(one, [0.0] * 3, 3, 3)
    run(two, [0.0] * 3, 3, 3)
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_no_number_names_epoch_and_batch(bad: float) -> None:
    trained = model()
    losses = iter([1.0, 1.0, 1.0, bad])
    with pytest.raises(DivergedError, match=r"epoch 2, batch 2.*train\.learning_rate"):
        fit(
            trained,
            optimizers(trained, 0.05),
            TrainState(),
            batches=lambda epoch: [batch(), batch()],
            loss=lambda pairs: softmax_loss(trained, pairs, 0.5) * 0 + next(losses),
            validate=lambda: {"score": 0.0},
            score="score",
            epochs=3,
            patience=3,
            on_epoch_end=lambda state: None,
        )


def test_the_clock_ends_an_epoch_between_two_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch takes 2 s and validation 50, which do not count: of 7 s the first epoch takes 6, the second a batch."""
    now, trained, seen = [0.0], model(), []
    monkeypatch.setattr("m3rec_spark.training.loop.time.perf_counter", lambda: now[0])

    def loss(pairs: Pairs) -> torch.Tensor:
        now[0] += 2.0
        seen.append(state.epoch)
        return softmax_loss(trained, pairs, 0.5)

    def validate() -> dict[str, float]:
        now[0] += 50.0
        return {"score": 0.0}

    state = TrainState()
    fit(
        trained, optimizers(trained, 0.05), state, batches=lambda epoch: [batch()] * 3, loss=loss, validate=validate,
        score="score", epochs=9, patience=9, on_epoch_end=lambda state: None, seconds=7.0,
    )  # fmt: skip
    assert seen == [0, 0, 0, 1]
    assert [row["train/seconds"] for row in state.history] == [6.0, 2.0]
    assert [row["valid/seconds"] for row in state.history] == [50.0, 50.0]
    assert (state.seconds, state.stopped_by(9, 9, 7.0)) == (8.0, "seconds")


def test_limits_of_a_training() -> None:
    state = TrainState(epoch=2, best_epoch=2, history=[{"train/seconds": 3.0}, {"train/seconds": 4.0}])
    assert state.stopped_by(epochs=9, patience=5) is None
    assert state.stopped_by(epochs=9, patience=5, seconds=7.5) is None
    assert state.stopped_by(epochs=9, patience=5, seconds=7.0) == "seconds"
    assert state.stopped_by(epochs=2, patience=5, seconds=7.0) == "epochs"
    state.best_epoch = 0
    assert state.stopped_by(epochs=9, patience=2) == "patience"
