"""How every other system of Table 2 is trained into a folder, and the scorers that read a folder."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from m3rec_spark.config import Train, changed
from m3rec_spark.evaluation.validation import MEAN, cosine_scores
from m3rec_spark.models.catalogue import PAIR_MODELS, build
from m3rec_spark.models.forec import Forec
from m3rec_spark.ranking.model_scorers import DotScorer, ModuleScorer, save_module
from m3rec_spark.ranking.scorers import CosineScorer, EaseScorer, PopularityScorer, Scorer, published_scorer
from m3rec_spark.similarity.skipgram import fit_item_vectors
from m3rec_spark.similarity.walk_graph import item_weights
from m3rec_spark.similarity.walks import walk_matrix
from m3rec_spark.stages.bench import JUDGED, Bench, Facts, Settings
from m3rec_spark.stages.linear_part import add_linear
from m3rec_spark.stages.market_model import batch_loss, build_model, epoch_batches
from m3rec_spark.training.export import export_model
from m3rec_spark.training.loop import TrainState, fit, optimizers

_LEARNING = ("learning_rate", "batch_size", "negatives")  # settings that are not the module's own


def train_popularity(bench: Bench, settings: Settings, seed: int, folder: Path) -> Facts:
    """Nothing: the counts are in the arrays."""
    return {}


def train_random_walk(bench: Bench, settings: Settings, seed: int, folder: Path) -> Facts:
    """Item2vec over the walks on the merged graph: skip-gram without B-Glob; a user is the mean of his items."""
    arrays, given = bench.arrays, bench.config.skipgram.model_dump(exclude={"smooth", "seed"})
    degrees = item_weights(arrays.indptr, arrays.items, arrays.n_items, bench.config.walks.self_loops)
    walks = walk_matrix(bench.workspace.read_arrow("walks"))
    vectors = fit_item_vectors(walks, None, degrees, seed=seed, device=bench.device, **(given | dict(settings)))
    vectors[degrees == 0] = 0.0
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0)[arrays.slot_items]
    walked = (degrees > 0)[arrays.slot_items].astype(np.float32)
    files = {"item_vectors": unit, "history_vectors": unit, "history_weights": walked}
    files["user_vectors"] = np.zeros((arrays.n_rows, unit.shape[1]), np.float32)
    for name, array in files.items():
        np.save(folder / f"{name}.npy", array)
    return {}


def train_module(name: str) -> Callable[[Bench, Settings, int, Path], Facts]:
    """A recipe of models.catalogue by the one training loop."""

    def train(bench: Bench, settings: Settings, seed: int, folder: Path) -> Facts:
        given = dict(settings)
        changed: dict[str, Any] = {key: given.pop(key) for key in _LEARNING if key in given}
        changed |= {"epochs": bench.config.compare.epochs, "patience": bench.config.compare.patience, "seed": seed}
        changed |= {"loss": "margin", "dropout": 0.0, "exclude_target": False}  # margin: own negatives of each pair
        options = bench.config.train.model_copy(update=changed)
        model = build(name, bench.arrays, given, seed).to(bench.device)
        if isinstance(model, Forec):  # one budget for both phases
            facts: Facts = {"pretrained": _fit(bench, model, options, True, bench.seconds / 2)}
            model.fork()
            facts |= _fit(
                bench, model, options, True, max(bench.seconds - facts["pretrained"]["trained_seconds"], 1e-9)
            )
            if facts["pretrained"]["stopped_by"] == "seconds":
                facts["stopped_by"] = "seconds"
        else:
            facts = _fit(bench, model, options, name in PAIR_MODELS, bench.seconds)
        model.eval()
        if name in PAIR_MODELS:
            save_module(model, folder, name, given)
        else:
            _save_vectors(model, folder)
        return facts

    return train


def train_m3rec(bench: Bench, settings: Settings, seed: int, folder: Path) -> Facts:
    """The market model under train.*, changed by the settings."""
    options: Train = changed(bench.config, "train", {**settings, "seed": seed}, "compare.settings")
    dimension, device = bench.config.skipgram.dimension, bench.device
    model, arrays = build_model(bench.workspace, bench.arrays, options, dimension).to(device), bench.arrays
    validator = bench.validator()
    state = TrainState()
    feed = bench.workspace.folder("feed")
    fit(
        model, optimizers(model, options.learning_rate), state,
        batches=lambda epoch: epoch_batches(options, feed, arrays, epoch, device),
        loss=lambda pairs: batch_loss(options, model, pairs),
        validate=lambda: validator.figures(cosine_scores(model, arrays), device),
        score=MEAN, epochs=options.epochs, patience=options.patience, on_epoch_end=_silently,
        seconds=bench.seconds,
    )  # fmt: skip
    export_model(model, folder, options.model_dump(mode="json"), state.best_epoch)
    return _told(state, options, bench.seconds) | add_linear(options, bench.workspace, folder, arrays, bench.sample)


def train_m3rec_to_the_end(bench: Bench, settings: Settings, seed: int, folder: Path) -> Facts:
    """The same, until its epochs or its patience end."""
    return train_m3rec(dataclasses.replace(bench, seconds=math.inf), settings, seed, folder)


def _fit(bench: Bench, model: Any, options: Train, by_lists: bool, seconds: float) -> Facts:
    """Trains until its epochs, its patience or the seconds are used up."""
    state, validator, feed = TrainState(), bench.validator(), bench.workspace.folder("feed")

    def batches(epoch: int) -> Any:
        for number, batch in enumerate(epoch_batches(options, feed, bench.arrays, epoch, bench.device)):
            torch.manual_seed(hash((options.seed, epoch, number)))  # of the dropout: an epoch is the same in any run
            yield batch

    with torch.random.fork_rng(devices=[]):
        fit(
            model, optimizers(model, options.learning_rate), state, batches=batches, loss=model.loss,
            validate=lambda: validator.figures(model.scorer(), bench.device, by_lists), score=MEAN,
            epochs=options.epochs, patience=options.patience, on_epoch_end=_silently, seconds=seconds,
        )  # fmt: skip
    return _told(state, options, seconds) | {JUDGED: state.best_score}


def _silently(state: TrainState) -> None:
    """Runs of a comparison have no checkpoints: a cut one begins anew."""


def _told(state: TrainState, options: Train, seconds: float) -> Facts:
    stopped_by = state.stopped_by(options.epochs, options.patience, seconds)
    curve = [row[MEAN] for row in state.history]
    spent = round(state.seconds, 3)
    told = {"best_epoch": state.best_epoch, "epochs": state.epoch, "trained_seconds": spent, "curve": curve}
    return told | {"stopped_by": stopped_by}


def _save_vectors(model: Any, folder: Path) -> None:
    with torch.no_grad():
        users, items = (part.cpu().numpy() for part in model.vectors())
    np.save(folder / "user_vectors.npy", users)
    np.save(folder / "item_vectors.npy", items)


def popularity_scorer(bench: Bench, folder: Path, name: str) -> Scorer:
    """Counts."""
    return PopularityScorer(name)


def m3rec_scorer(bench: Bench, folder: Path, name: str) -> Scorer:
    """Cosine and linear part."""
    found = published_scorer(str(folder), str(bench.workspace.folder("ease")))
    return dataclasses.replace(found, name=name)


def ease_scorer(bench: Bench, folder: Path, name: str) -> Scorer:
    """X B."""
    return EaseScorer(str(folder), name)


def cosine_scorer(bench: Bench, folder: Path, name: str) -> Scorer:
    """Cosine of the mean of a history."""
    return CosineScorer(str(folder), name)


def module_scorer(bench: Bench, folder: Path, name: str) -> Scorer:
    """The module itself, in the worker."""
    return ModuleScorer(str(folder), str(bench.workspace.folder("arrays")), name)


def dot_scorer(bench: Bench, folder: Path, name: str) -> Scorer:
    """Products of vectors."""
    return DotScorer(str(folder), name)
