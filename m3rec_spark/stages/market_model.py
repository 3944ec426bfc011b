"""The market model out of the workspace's tables, its batches, loss and linear part: for train and compare."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from m3rec_spark.config import Train
from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.evaluation.blend import choose_weights
from m3rec_spark.models.m3rec import M3Rec, margin_loss, market_similarity, softmax_loss
from m3rec_spark.models.pairs import Pairs
from m3rec_spark.ranking.scorers import LINEAR, CosineScorer, EaseScorer
from m3rec_spark.similarity.b_glob import tailor
from m3rec_spark.similarity.market_linear import others_folder
from m3rec_spark.similarity.similarity_table import item_vectors, similarity_matrix
from m3rec_spark.tables import Workspace
from m3rec_spark.training import feed
from m3rec_spark.training.sampling import PairSampler

log = logging.getLogger(__name__)


def build_model(workspace: Workspace, arrays: MarketArrays, settings: Train, dimension: int) -> M3Rec:
    """The model before training, with the global similarities that the settings ask for."""
    similarity = prior = None
    if settings.intra:
        b_glob = similarity_matrix(workspace.read_arrow("similarity"), arrays.n_items)
        markets = [arrays.slot_items[arrays.market_slots(market)] for market in range(arrays.n_markets)]
        similarity = market_similarity([tailor(b_glob, items) for items in markets])
    if settings.inter:
        prior = item_vectors(workspace.read_arrow("item_vectors"), arrays.n_items)[arrays.slot_items]
    return M3Rec(arrays.n_rows, len(arrays.slot_items), dimension, similarity, prior, settings.seed)


def epoch_batches(
    settings: Train, folder: Path, arrays: MarketArrays, epoch: int, device: torch.device
) -> Iterator[Pairs]:
    """The batches of an epoch (from 0) out of the table `feed`."""
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


def batch_loss(settings: Train, model: M3Rec, pairs: Pairs) -> Tensor:
    """Eq. 12 or its softmax, and eq. 13."""
    if settings.loss == "softmax":
        loss = softmax_loss(model, pairs, settings.temperature)
    else:
        loss = margin_loss(model, pairs, settings.gamma)
    return loss + settings.lambda_loca * model.penalty()


def add_linear(
    settings: Train, workspace: Workspace, folder: Path, arrays: MarketArrays, sample: pa.Table
) -> dict[str, list[float]]:
    """Chooses each market's linear model and its share, and lays both beside the exported model.

    Gives `ease_weights`, the shares w_m, and with linear models of the markets' own also `linear_others`, the weight of
    the other markets' shoppers in each (market_linear.py); empty lists for the cosine alone.
    """
    if not (settings.intra and settings.ease_weights):
        return {"ease_weights": [], "linear_others": []}
    tried: list[float] = workspace.facts("linear")["others"] if settings.linear == "own" else []
    table = workspace.folder("linear" if tried else "ease")
    folders = [others_folder(table, number) for number in range(len(tried))] or [table]
    linear = [EaseScorer(str(place)) for place in folders]
    chosen, weights = choose_weights(CosineScorer(str(folder)), linear, arrays, sample, settings.ease_weights)
    np.save(folder / "ease_weights.npy", weights)
    if tried:
        (folder / LINEAR).mkdir()
        for market in np.flatnonzero(weights):
            shutil.copy(folders[chosen[market]] / f"market-{market:05d}.npz", folder / LINEAR)
    found = {
        "ease_weights": [round(float(weight), 6) for weight in weights],  # as they were typed, not as float32 has them
        "linear_others": [tried[number] for number in chosen] if tried else [],
    }
    log.info("share of the linear score by market: %s; weight of the other markets in it: %s", *found.values())
    return found
