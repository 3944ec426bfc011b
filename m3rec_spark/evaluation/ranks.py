"""Ranks of the held-out positives, among the frozen candidates and among all items of the market.

Expected rank: 1 + #(rivals above) + #(rivals level) / 2, the mean over all orders of the ties. Both ranks come from one
block of scores. Cost per user and model: the scoring and two passes over the market's items; memory per worker: about
20 bytes x block x items of the market, besides the scorer's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql import types as T
from pyspark.sql.pandas.types import to_arrow_schema
from threadpoolctl import threadpool_limits

from m3rec_spark.data.arrays import MarketArrays, open_arrays
from m3rec_spark.errors import DataError
from m3rec_spark.evaluation.candidates import Seen, eligible_items, local_indices, market_blocks
from m3rec_spark.ranking.scorers import Scorer
from m3rec_spark.schema import RANKS

LIST_RANKS = T.StructType([*RANKS.fields, T.StructField("seen", T.StringType(), False)])


def rank_users(
    candidates: DataFrame, scorers: Sequence[Scorer], arrays_folder: Path, block: int, seen: Seen
) -> DataFrame:
    """CANDIDATES -> RANKS, a row per candidate row and scorer. No shuffle.

    Args:
        candidates: as published.
        scorers: the models; their folders must be readable by the workers.
        arrays_folder: the table `arrays`.
        block: users scored at once.
        seen: as in the contract of the candidates; under "excluded" the full rank too leaves out the user's history.
    """
    return rank_lists(candidates.withColumn("seen", F.lit(seen)), scorers, arrays_folder, block).drop("seen")


def rank_lists(lists: DataFrame, scorers: Sequence[Scorer], arrays_folder: Path, block: int) -> DataFrame:
    """The same for lists of several contracts at once: CANDIDATES and `seen` -> RANKS and `seen` (LIST_RANKS).

    A user is scored once for all his lists of a block; so let them stand one after the other.
    """
    folder, models = str(arrays_folder), tuple(scorers)

    def rank(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        arrays = open_arrays(Path(folder))
        with threadpool_limits(1):  # Spark runs a worker per core already
            for batch in batches:
                yield from _rank_batch(arrays, batch, models, block)

    return lists.mapInArrow(rank, LIST_RANKS)


def expected_ranks(scores: NDArray[Any], positives: NDArray[np.intp], rivals: NDArray[np.bool_]) -> NDArray[np.float64]:
    """1-based expected rank of each user's positive among its rivals.

    Args:
        scores: (B, I).
        positives: (B,) columns.
        rivals: (B, I) what the positive is ranked against; itself not among it.

    Raises:
        ValueError: a score is NaN.

    >>> expected_ranks(np.array([[0.5, 0.9, 0.5, 0.1]]), np.array([0]), np.array([[False, True, True, True]]))
    array([2.5])
    """
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN")
    own = scores[np.arange(len(scores)), positives][:, None]
    above: NDArray[np.int64] = ((scores > own) & rivals).sum(axis=1)
    level: NDArray[np.int64] = ((scores == own) & rivals).sum(axis=1)
    return 1.0 + above + level / 2.0


def _rank_batch(
    arrays: MarketArrays, batch: pa.RecordBatch, scorers: Sequence[Scorer], block: int
) -> Iterator[pa.RecordBatch]:
    schema = to_arrow_schema(LIST_RANKS)
    markets, users, positives = (batch.column(name).to_numpy() for name in ("market", "user", "positive"))
    excluded = pc.equal(batch.column("seen"), "excluded").to_numpy(zero_copy_only=False)
    for market, rows in market_blocks(markets, block):
        positive = local_indices(arrays, market, positives[rows])
        distinct, which = np.unique(users[rows], return_inverse=True)
        pool = eligible_items(arrays, market, users[rows], positive, "included")
        without = excluded[rows]
        pool[without] = eligible_items(arrays, market, users[rows][without], positive[without], "excluded")
        listed = _listed(arrays, market, batch.column("negatives").take(pa.array(rows)), pool)
        same = [batch.column(name).take(pa.array(rows)) for name in ("market", "user", "half", "cold")]
        under = batch.column("seen").take(pa.array(rows))
        for scorer in scorers:
            scores = scorer.score(arrays, market, distinct)[which]
            try:
                ranks = [expected_ranks(scores, positive, rivals) for rivals in (listed, pool)]
            except ValueError as error:
                raise DataError(f"model '{scorer.name}' in market {market}: {error}; train it again") from None
            model = pa.array([scorer.name] * len(rows), pa.string())
            yield pa.RecordBatch.from_arrays([model, *same, *map(pa.array, ranks), under], schema=schema)


def _listed(arrays: MarketArrays, market: int, negatives: pa.ListArray, pool: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(B, I): the market's items that each user's list names."""
    listed = np.zeros_like(pool)
    users = np.repeat(np.arange(len(pool)), negatives.value_lengths().to_numpy())
    listed[users, local_indices(arrays, market, negatives.flatten().to_numpy())] = True
    return listed
