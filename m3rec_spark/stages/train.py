"""Stage 3: arrays, feed, similarity, item_vectors, candidates -> model; checkpoints; reports/train.json."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from m3rec_spark.config import Train
from m3rec_spark.data.arrays import MarketArrays, open_arrays
from m3rec_spark.errors import CheckpointError, UsageError
from m3rec_spark.evaluation.blend import choose_weights
from m3rec_spark.evaluation.validation import MEAN, Validator, validation_sample
from m3rec_spark.models.m3rec import M3Rec, Pairs, margin_loss, market_similarity, softmax_loss
from m3rec_spark.paths import write_atomically
from m3rec_spark.ranking.scorers import CosineScorer, EaseScorer
from m3rec_spark.similarity.b_glob import tailor
from m3rec_spark.similarity.similarity_table import item_vectors, similarity_matrix
from m3rec_spark.stages.context import Context
from m3rec_spark.tables import Workspace
from m3rec_spark.training import checkpoint, feed
from m3rec_spark.training.curves import loss_curve
from m3rec_spark.training.export import export_model
from m3rec_spark.training.loop import TrainState, fit, optimizers
from m3rec_spark.training.sampling import PairSampler

log = logging.getLogger(__name__)

REPORT = "reports/train.json"


def run(context: Context) -> None:
    """Trains all markets jointly, from the last checkpoint if context.resume, and publishes the best epoch's model.

    Raises:
        UsageError: no such device, or petastorm is missing.
        CheckpointError: nothing whole, or only another run's checkpoints, to resume from.
        DivergedError: the loss is no number any more.
    """
    settings, workspace = context.config.train, context.workspace
    if settings.threads:
        torch.set_num_threads(settings.threads)
    device = choose_device(settings.device)
    arrays = open_arrays(workspace.folder("arrays"))
    model = _model(context, arrays).to(device)
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
        batches=lambda epoch: _batches(settings, workspace.folder("feed"), arrays, epoch, device),
        loss=lambda pairs: _loss(settings, model, pairs),
        validate=lambda: validator.figures(model),
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


def _model(context: Context, arrays: MarketArrays) -> M3Rec:
    settings, workspace = context.config.train, context.workspace
    similarity = prior = None
    if settings.intra:
        b_glob = similarity_matrix(workspace.read_arrow("similarity"), arrays.n_items)
        markets = [arrays.slot_items[arrays.market_slots(market)] for market in range(arrays.n_markets)]
        similarity = market_similarity([tailor(b_glob, items) for items in markets])
    if settings.inter:
        prior = item_vectors(workspace.read_arrow("item_vectors"), arrays.n_items)[arrays.slot_items]
    dimension = context.config.skipgram.dimension
    return M3Rec(arrays.n_rows, len(arrays.slot_items), dimension, similarity, prior, settings.seed)


def _validator(workspace: Workspace, arrays: MarketArrays, sample: pa.Table) -> Validator:
    markets = workspace.read_arrow("markets", ["market", "market_id"])
    return Validator(arrays, sample, dict(zip(*(column.to_pylist() for column in markets.columns), strict=True)))


def _batches(settings: Train, folder: Path, arrays: MarketArrays, epoch: int, device: torch.device) -> Iterator[Pairs]:
    shared = settings.loss == "softmax"
    sampler = PairSampler(
        arrays,
        settings.shared_negatives if shared else settings.negatives,
        shared=shared,
        exclude_target=settings.exclude_target,
        dropout=settings.dropout,
        seed=settings.seed,
    )
    for number, batch in enumerate(feed.batches(folder, settings.batch_size, settings.seed, epoch, settings.feed)):
        yield sampler.pairs(*batch, epoch, number).to(device)


def _loss(settings: Train, model: M3Rec, pairs: Pairs) -> Tensor:
    if settings.loss == "softmax":
        loss = softmax_loss(model, pairs, settings.temperature)
    else:
        loss = margin_loss(model, pairs, settings.gamma)
    return loss + settings.lambda_loca * model.penalty()


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
        figures["train/seconds"],
    )  # fmt: skip


def _publish(context: Context, model: M3Rec, state: TrainState, arrays: MarketArrays, sample: pa.Table) -> None:
    settings = context.config.train
    log.info("best epoch: %d of %d, validation NDCG@10 %.4f", state.best_epoch, state.epoch, state.best_score)
    with context.workspace.publishing("model", context.key) as folder:
        export_model(model, folder, settings.model_dump(mode="json"), state.best_epoch)
        shares = _ease_shares(context, folder, arrays, sample)
    report = {
        "key": context.key,
        "settings": settings.model_dump(mode="json"),
        "best_epoch": state.best_epoch,
        "best_score": state.best_score,
        "ease_weights": shares,
        "epochs": state.history,
    }
    write_atomically(context.workspace.root / REPORT, json.dumps(report, indent=1).encode())
    context.tracker.json(report, "train.json")
    context.tracker.metrics({"best_epoch": state.best_epoch, f"best/{MEAN}": state.best_score})
    context.tracker.figure(loss_curve(state.history, MEAN, state.best_epoch), "loss.png")


def _ease_shares(context: Context, folder: Path, arrays: MarketArrays, sample: pa.Table) -> list[float]:
    """Chooses each market's share of EASE and lays it beside the exported model; [] for the cosine alone."""
    settings, workspace = context.config.train, context.workspace
    if not (settings.intra and settings.ease_weights):
        return []
    cosine, ease = CosineScorer(str(folder)), EaseScorer(str(workspace.folder("ease")))
    weights = choose_weights(cosine, ease, arrays, sample, settings.ease_weights)
    np.save(folder / "ease_weights.npy", weights)
    shares = [round(float(weight), 6) for weight in weights]  # as they were typed, not as float32 has them
    log.info("share of the EASE score by market: %s", shares)
    return shares
