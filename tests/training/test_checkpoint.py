"""Resume equals an uninterrupted run, to the bit; damage is seen; nothing is half written."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.errors import CheckpointError
from m3rec_spark.models.m3rec import M3Rec, softmax_loss
from m3rec_spark.training import checkpoint
from m3rec_spark.training.loop import TrainState, fit, optimizers
from m3rec_spark.training.sampling import PairSampler

KEY = "a" * 64
SCORES = [0.1, 0.4, 0.3, 0.5, 0.2, 0.1]  # by epoch
ARRAYS = MarketArrays(
    indptr=np.arange(0, 41, 4),
    slots=np.sort((np.arange(40).reshape(10, 4) * 7) % 12, axis=1).astype(np.int32).ravel(),
    user_offsets=np.array([0, 10]),
    slot_items=np.arange(12, dtype=np.int32),
    slot_offsets=np.array([0, 12]),
    slot_counts=np.full(12, 3, np.int32),
    n_items=12,
)


def train(folder: Path, epochs: int, resume: bool = False, die_in: int | None = None) -> tuple[M3Rec, TrainState]:
    """Trains with a checkpoint each epoch; `die_in`: SIGKILL to itself in the middle of that epoch (0-based)."""
    model = M3Rec(10, 12, 4, None, np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32))
    steppers = optimizers(model, 0.05)
    state = (checkpoint.restore(folder, KEY, model, steppers) if resume else None) or TrainState()
    sampler = PairSampler(ARRAYS, 3, True, True, 0.3, seed=1)

    def batches(epoch: int):
        order = np.random.default_rng([1, epoch]).permutation(40)
        for number in range(4):
            if epoch == die_in and number == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            chosen = order[number * 10 : (number + 1) * 10]
            yield sampler.pairs(np.zeros(10, np.int64), chosen // 4, ARRAYS.items[chosen], epoch, number)

    fit(
        model,
        steppers,
        state,
        batches=batches,
        loss=lambda pairs: softmax_loss(model, pairs, 0.2),
        validate=lambda: {"score": SCORES[state.epoch]},
        score="score",
        epochs=epochs,
        patience=9,
        on_epoch_end=lambda state: checkpoint.save(folder, KEY, model, steppers, state),
    )
    return model, state


def fresh() -> tuple[M3Rec, list[torch.optim.Optimizer]]:
    model = M3Rec(10, 12, 4, None, np.zeros((12, 4), np.float32))
    return model, optimizers(model, 0.05)


def tensors(folder: Path, epoch: int) -> bytes:
    return (folder / f"epoch-{epoch:04d}" / "tensors.safetensors").read_bytes()


def test_resume_equals_an_uninterrupted_run(tmp_path: Path) -> None:
    whole, state = train(tmp_path / "whole", 6)
    train(tmp_path / "cut", 3)
    resumed, again = train(tmp_path / "cut", 6, resume=True)
    assert tensors(tmp_path / "whole", 6) == tensors(tmp_path / "cut", 6)  # model, moments, best: every bit
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    assert (state.best_epoch, state.best_score) == (again.best_epoch, again.best_score) == (4, 0.5)
    assert [row["train/loss"] for row in state.history] == [row["train/loss"] for row in again.history]


def test_resume_after_a_kill_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    child = multiprocessing.get_context("spawn").Process(target=train, args=(tmp_path / "cut", 6, False, 3))
    child.start()
    child.join(timeout=60)
    assert child.exitcode == -signal.SIGKILL
    train(tmp_path / "cut", 6, resume=True)
    train(tmp_path / "whole", 6)
    assert tensors(tmp_path / "whole", 6) == tensors(tmp_path / "cut", 6)


def test_the_last_two_are_kept_and_nothing_half_written(tmp_path: Path) -> None:
    (tmp_path / ".epoch-0003-dead").mkdir()  # of a writer that was killed
    train(tmp_path, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0004", "epoch-0005"]


def test_nothing_to_restore(tmp_path: Path) -> None:
    assert checkpoint.restore(tmp_path / "absent", KEY, *fresh()) is None


def test_another_key_is_refused(tmp_path: Path) -> None:
    train(tmp_path, 2)
    with pytest.raises(CheckpointError, match="other settings or data"):
        checkpoint.restore(tmp_path, "b" * 64, *fresh())


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "absent":
        path.unlink()
    else:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
@pytest.mark.parametrize("how", ["truncated", "empty", "absent", "flipped bit"])
def test_damage_falls_back_to_the_checkpoint_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, how: str
) -> None:
    train(tmp_path / "whole", 6)
    train(tmp_path / "cut", 4)
    damage(tmp_path / "cut" / "epoch-0004" / file, how)
    with caplog.at_level(logging.WARNING):
        _, state = train(tmp_path / "cut", 6, resume=True)
    assert "epoch-0004 is damaged" in caplog.text
    assert state.epoch == 6
    assert tensors(tmp_path / "whole", 6) == tensors(tmp_path / "cut", 6)


def test_no_whole_checkpoint_is_an_error_that_names_them(tmp_path: Path) -> None:
    train(tmp_path, 3)
    for epoch in (2, 3):
        damage(tmp_path / f"epoch-000{epoch}" / "tensors.safetensors", "truncated")
    with pytest.raises(CheckpointError, match=r"epoch-0003, epoch-0002.*without --resume"):
        checkpoint.restore(tmp_path, KEY, *fresh())


class Bomb:
    def __reduce__(self):
        return (Path("exploded").touch, ())


def test_a_pickle_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(tmp_path / "run", 1)
    (tmp_path / "run" / "epoch-0001" / "tensors.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CheckpointError):
        checkpoint.restore(tmp_path / "run", KEY, *fresh())
    assert not Path("exploded").exists()


def test_a_failed_save_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = train(tmp_path, 2)

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(tmp_path, KEY, model, [], TrainState(epoch=3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch-0001", "epoch-0002"]
