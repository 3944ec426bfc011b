"""Stage 3: arrays, feed, similarity, item_vectors, candidates -> model; checkpoints; reports/train.json."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pyarrow as pa
import torch

from m3rec_spark.data.arrays import MarketArrays, open_arrays
from m3rec_spark.errors import CheckpointError, UsageError
from m3rec_spark.evaluation.validation import MEAN, Validator, cosine_scores, validation_sample
from m3rec_spark.models.m3rec import M3Rec
from m3rec_spark.paths import write_atomically
from m3rec_spark.stages.context import Context
from m3rec_spark.stages.linear_part import add_linear
from m3rec_spark.stages.market_model import batch_loss, build_model, epoch_batches
from m3rec_spark.tables import Workspace
from m3rec_spark.training import checkpoint
from m3rec_spark.training.curves import loss_curve
from m3rec_spark.training.export import export_model
from m3rec_spark.training.loop import TrainState, fit, optimizers

log = logging.getLogger(__name__)

REPORT = "reports/train.json"


def run(context: Context) -> None:
    """Trains all markets jointly, from the last checkpoint if context.resume, and publishes the best epoch's model.

    Raises:
        UsageError: no such device, or petastorm is missing.
        CheckpointError: nothing whole, or only another run's checkpoints, to resume from.
        DivergedError: the loss or a score is no number any more.
    """
    settings, workspace = context.config.train, context.workspace
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = choose_device(settings.device)
    arrays = open_arrays(workspace.folder("arrays"))
    model = build_model(workspace, arrays, settings, context.config.skipgram.dimension).to(device)
    steppers = optimizers(model, settings.learning_rate)
    folder = workspace.root / "checkpoints" / context.key[:12]
    sample = validation_sample(workspace.folder("candidates"), settings.validation_users, settings.seed)
    validator = _validator(workspace, arrays, sample)
    state = _start(context, folder, model, steppers)
    log.info(
        "training on %s: %d markets, %d users, %d items by market, %d pairs; checkpoints in %s",
        device, arrays.n_markets, arrays.n_rows, len(arrays.slot_items), len(arrays.slots), folder,
    )  # fmt: skip

    def epoch_ends(state: TrainState) -> None:
        checkpoint.save(folder, context.key, model, steppers, state)
        _tell_epoch(context, state)

    fit(
        model,
        steppers,
        state,
        batches=lambda epoch: epoch_batches(settings, workspace.folder("feed"), arrays, epoch, device),
        loss=lambda pairs: batch_loss(settings, model, pairs),
        validate=lambda: validator.figures(cosine_scores(model, arrays), device),
        score=MEAN,
        epochs=settings.epochs,
        patience=settings.patience,
        on_epoch_end=epoch_ends,
    )
    _publish(context, model, state, arrays, sample)


def choose_device(wish: str) -> torch.device:
    """`auto`: the GPU if there is one.

    Raises:
        UsageError: cuda where there is none.
    """
    if wish == "cuda" and not torch.cuda.is_available():
        raise UsageError("train.device=cuda, but torch sees no GPU: set train.device=auto, or install a CUDA build")
    return torch.device("cuda" if wish != "cpu" and torch.cuda.is_available() else "cpu")


def _validator(workspace: Workspace, arrays: MarketArrays, sample: pa.Table) -> Validator:
    markets = workspace.read_arrow("markets", ["market", "market_id"])
    return Validator(arrays, sample, dict(zip(*(column.to_pylist() for column in markets.columns), strict=True)))


def _start(context: Context, folder: Path, model: M3Rec, steppers: list[torch.optim.Optimizer]) -> TrainState:
    """A new state, or with context.resume that of the last checkpoint."""
    if not context.resume:
        _set_aside(folder)
        return TrainState()
    state = checkpoint.restore(folder, context.key, model, steppers)
    if state is None:
        others = sorted(other.name for other in folder.parent.glob("*") if other != folder and not other.suffix)
        if others:
            raise CheckpointError(
                f"no checkpoint of this config and data in {folder.parent}, only of others (keys {', '.join(others)}): "
                "go back to the config that was interrupted, or train without --resume"
            )
        log.info("no checkpoint to resume from: training starts at epoch 1")
        return TrainState()
    log.info("resumed after epoch %d (best so far: epoch %d, %.4f)", state.epoch, state.best_epoch, state.best_score)
    for epoch, figures in enumerate(state.history, start=1):  # so that this run's curves are whole
        context.tracker.metrics(figures, step=epoch)
    return state


def _set_aside(folder: Path) -> None:
    """Keeps the checkpoints of an earlier run of this config, one run back: a forgotten --resume loses no training."""
    if not folder.is_dir():
        return
    kept = folder.with_suffix(".before")
    shutil.rmtree(kept, ignore_errors=True)
    folder.rename(kept)
    log.warning(
        "training starts at epoch 1; the checkpoints of the run before, which --resume would have gone on from, are "
        "now in %s (rename it to %s to resume from them)", kept, folder.name,
    )  # fmt: skip


def _tell_epoch(context: Context, state: TrainState) -> None:
    figures = state.history[-1]
    context.tracker.metrics(figures, step=state.epoch)
    log.info(
        "epoch %d: loss %.4f, validation NDCG@10 %.4f%s (%.1f s)",
        state.epoch, figures["train/loss"], figures[MEAN], " *" if state.best_epoch == state.epoch else "",
        figures["train/seconds"] + figures["valid/seconds"],
    )  # fmt: skip


def _publish(context: Context, model: M3Rec, state: TrainState, arrays: MarketArrays, sample: pa.Table) -> None:
    settings = context.config.train
    log.info("best epoch: %d of %d, validation NDCG@10 %.4f", state.best_epoch, state.epoch, state.best_score)
    with context.workspace.publishing("model", context.key) as folder:
        export_model(model, folder, settings.model_dump(mode="json"), state.best_epoch)
        linear = add_linear(settings, context.workspace, folder, arrays, sample)
    report = {
        "key": context.key,
        "settings": settings.model_dump(mode="json"),
        "best_epoch": state.best_epoch,
        "best_score": state.best_score,
        **linear,
        "epochs": state.history,
    }
    write_atomically(context.workspace.root / REPORT, json.dumps(report, indent=1).encode())
    context.tracker.json(report, "train.json")
    context.tracker.metrics({"best_epoch": state.best_epoch, f"best/{MEAN}": state.best_score})
    context.tracker.figure(loss_curve(state.history, MEAN, state.best_epoch), "loss.png")
