"""The torch models of the paper's Table 2 by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from m3rec_spark.models.bitgcf import BiTGCF
from m3rec_spark.models.cross_stitch import CrossStitch
from m3rec_spark.models.forec import Forec
from m3rec_spark.models.layout import Layout
from m3rec_spark.models.lightgcn import LightGCN
from m3rec_spark.models.mmoe import MMoE
from m3rec_spark.models.neumf import NeuMF
from m3rec_spark.models.pairs import Pairs, PairScores
from m3rec_spark.models.star import Star

if TYPE_CHECKING:
    from m3rec_spark.data.arrays import MarketArrays

PAIR_MODELS: dict[str, Callable[..., nn.Module]] = {
    "neumf": NeuMF,
    "mmoe": MMoE,
    "cross_stitch": CrossStitch,
    "star": Star,
    "forec": Forec,
}
GRAPH_MODELS: dict[str, Callable[..., nn.Module]] = {"lightgcn": LightGCN, "bitgcf": BiTGCF}


class Recommender(Protocol):
    """What training and ranking need of a torch model, beside its being an nn.Module."""

    def loss(self, pairs: Pairs) -> Tensor:
        """Of a batch, mean over its pairs."""

    def scorer(self) -> PairScores:
        """Scores of the model as it stands."""


def build(name: str, arrays: MarketArrays, settings: Mapping[str, Any], seed: int) -> nn.Module:
    """A model with its random start; the same seed, the same start. Names: of PAIR_MODELS and GRAPH_MODELS.

    Args:
        name: of the model.
        arrays: histories and slots.
        settings: the arguments of its class after the layout.
        seed: of the start; torch's own generator stays as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if name in GRAPH_MODELS:
            return GRAPH_MODELS[name](arrays, Layout(arrays), **settings)
        return PAIR_MODELS[name](Layout(arrays), **settings)
