"""The market model out of the workspace's tables, its batches and its loss: for train and compare."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from m3rec_spark.config import Train
from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.models.m3rec import M3Rec, margin_loss, market_similarity, softmax_loss
from m3rec_spark.models.pairs import Pairs
from m3rec_spark.similarity.b_glob import tailor
from m3rec_spark.similarity.similarity_table import item_vectors, similarity_matrix
from m3rec_spark.tables import Workspace
from m3rec_spark.training import feed
from m3rec_spark.training.sampling import PairSampler


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
