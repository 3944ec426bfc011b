"""NDCG@10 on the validation half between epochs, in the training process: the frozen candidates, few users at a time.

Cost per epoch: users x (items in the lists of a block of users) x d; memory: the chosen users' candidate lists.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import torch
from numpy.typing import NDArray

from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.errors import DataError, DivergedError, UsageError
from m3rec_spark.evaluation.candidates import local_indices, market_blocks
from m3rec_spark.evaluation.metrics import ndcg
from m3rec_spark.evaluation.ranks import expected_ranks
from m3rec_spark.evaluation.significance import FEWEST
from m3rec_spark.models.m3rec import M3Rec, unit
from m3rec_spark.models.pairs import PairScores
from m3rec_spark.ranking.scorers import Scorer
from m3rec_spark.training.sampling import gather_histories, starts

BLOCK = 256  # users scored at once
_LISTS = 8  # or so many, each on a list of his own: what a layer gives for 8 x 1,000 pairs stays in the caches
MEAN = "valid/ndcg_10"  # over the values of the markets that judge: a small one counts as much as a large one


def validation_sample(candidates: Path, users: int, seed: int, half: str = "valid") -> pa.Table:
    """At most `users` rows of a half of the published candidates, the first by a hash of (seed, market, user).

    What chooses takes no rows of the test half: see `refuse_test_users`.

    Two passes over the files, so that only the chosen users' lists are ever in memory.
    """
    source = ds.dataset(candidates, format="parquet")
    wanted = ds.field("half") == half
    ids = source.to_table(columns=["market", "user"], filter=wanted)
    keys = _hash(ids["market"].to_numpy(), ids["user"].to_numpy(), seed)
    limit = np.partition(keys, users)[users] if users < len(keys) else None
    chosen, columns = [], ["market", "user", "positive", "half", "negatives"]
    for batch in source.to_batches(columns=columns, filter=wanted):
        keys = _hash(batch["market"].to_numpy(), batch["user"].to_numpy(), seed)
        chosen.append(batch if limit is None else batch.filter(pa.array(keys < limit)))
    return pa.Table.from_batches(chosen, schema=pa.schema([source.schema.field(name) for name in columns]))


def refuse_test_users(sample: pa.Table) -> None:
    """Called by all that chooses: an epoch, settings, shares.

    Raises:
        UsageError: a row of the sample is not of the validation half; what is chosen on it would prove nothing there.
    """
    halves = set(sample["half"].unique().to_pylist()) - {"valid"}
    if halves:
        raise UsageError(
            f"only the validation half chooses, got users of '{', '.join(sorted(halves))}': the test half only judges"
        )


def judging(ranks: Mapping[int, Sequence[NDArray[np.float64]]]) -> list[int]:
    """The markets with FEWEST validation users or more; all where none has so many.

    Args:
        ranks: market -> ranks of its users, in parts.
    """
    users = {market: sum(map(len, parts)) for market, parts in ranks.items()}
    return [market for market, n in users.items() if n >= FEWEST] or list(users)


@dataclass(frozen=True)
class _Block:
    """Users of one market, and what to score for them."""

    market: int
    users: NDArray[np.intp]
    """Rows of the sample."""
    slots: torch.Tensor
    """All slots that occur in their lists."""
    columns: NDArray[np.int64]
    """(B, 1 + longest list): positions in slots; the positive first."""
    rivals: NDArray[np.bool_]
    """The same shape: False at the positive and beyond the end of a list."""


class Validator:
    """Figures of a model on the validation users.

    Args:
        arrays: histories and slots.
        sample: rows of CANDIDATES (market, user, positive, half, negatives), as from `validation_sample`.
        market_ids: market index -> id, for the names of the figures.

    Raises:
        DataError: the sample is empty.
        UsageError: it holds test users.
    """

    def __init__(self, arrays: MarketArrays, sample: pa.Table, market_ids: Mapping[int, str]) -> None:
        refuse_test_users(sample)
        if not sample.num_rows:
            raise DataError("no user is in the validation half, so training could not tell when to stop: add users")
        markets, users = sample["market"].to_numpy(), sample["user"].to_numpy()
        self._market_ids = market_ids
        self._rows = arrays.user_offsets[markets] + users
        self._blocks = [_block(arrays, sample, market, rows) for market, rows in market_blocks(markets, BLOCK)]

    @torch.no_grad()
    def figures(self, score: PairScores, device: torch.device, by_lists: bool = False) -> dict[str, float]:
        """`<market id>/valid_ndcg_10` for every market with validation users, and their mean under MEAN.

        Args:
            score: of a model as it stands.
            device: of the model.
            by_lists: score every user's own list, slots (B, K), and not all that occur in the block's lists.

        Raises:
            DivergedError: a score is NaN.
        """
        ranks: dict[int, list[NDArray[np.float64]]] = {}
        for block in self._blocks:
            rows = torch.from_numpy(self._rows[block.users]).to(device)
            if by_lists:
                slots = block.slots[torch.from_numpy(block.columns)].to(device)
                parts = zip(torch.split(rows, _LISTS), torch.split(slots, _LISTS), strict=True)
                listed = np.concatenate([score(block.market, *part).cpu().numpy() for part in parts])
            else:
                scores = score(block.market, rows, block.slots.to(device)).cpu().numpy()
                listed = np.take_along_axis(scores, block.columns, axis=1)
            if np.isnan(listed).any():
                raise DivergedError(
                    f"scores became NaN in market {self._market_ids[block.market]}: lower train.learning_rate "
                    "(or raise train.temperature); checkpoints of earlier epochs are whole"
                )
            positives = np.zeros(len(listed), np.intp)
            ranks.setdefault(block.market, []).append(expected_ranks(listed, positives, block.rivals))
        by_market = {
            f"{self._market_ids[market]}/valid_ndcg_10": ndcg(np.concatenate(parts)) for market, parts in ranks.items()
        }
        judged = [by_market[f"{self._market_ids[market]}/valid_ndcg_10"] for market in judging(ranks)]
        return {MEAN: float(np.mean(judged)), **by_market}


@torch.no_grad()
def cosine_scores(model: M3Rec, arrays: MarketArrays) -> PairScores:
    """The market model's scores as it stands: cos(u, v), eq. 10-12."""
    histories = model.histories()

    def score(_: int, rows: torch.Tensor, slots: torch.Tensor) -> torch.Tensor:
        bags, lengths = gather_histories(arrays, rows.cpu().numpy())
        bag_slots, bag_starts = (torch.from_numpy(part).to(rows.device) for part in (bags, starts(lengths)))
        return unit(model.users(rows, bag_slots, bag_starts, histories)) @ unit(model.items(slots)).T

    return score


def sample_blocks(
    arrays: MarketArrays, sample: pa.Table, size: int
) -> Iterator[tuple[int, NDArray[np.int32], NDArray[np.intp], NDArray[np.bool_]]]:
    """(market, users (B,), their positives (B,) as local items, their rivals (B, I)) of the sample, block by block."""
    negatives = sample["negatives"].combine_chunks()
    users, positives = (sample[name].to_numpy() for name in ("user", "positive"))
    for market, rows in market_blocks(sample["market"].to_numpy(), size):
        lists, slots = negatives.take(pa.array(rows)), arrays.market_slots(market)
        rivals = np.zeros((len(rows), slots.stop - slots.start), np.bool_)
        owner = np.repeat(np.arange(len(rows)), lists.value_lengths().to_numpy())
        rivals[owner, local_indices(arrays, market, lists.flatten().to_numpy())] = True
        yield market, users[rows], local_indices(arrays, market, positives[rows]), rivals


def market_ndcg(scorer: Scorer, arrays: MarketArrays, sample: pa.Table) -> dict[int, float]:
    """NDCG@10 of a model on the sample's users of each market that judges. Raises: UsageError, if some are of test."""
    refuse_test_users(sample)
    ranks: dict[int, list[NDArray[np.float64]]] = {}
    for market, users, positives, rivals in sample_blocks(arrays, sample, BLOCK):
        ranks.setdefault(market, []).append(expected_ranks(scorer.score(arrays, market, users), positives, rivals))
    return {market: ndcg(np.concatenate(ranks[market])) for market in judging(ranks)}


def mean_ndcg(scorer: Scorer, arrays: MarketArrays, sample: pa.Table) -> float:
    """The mean over the markets of `market_ndcg`."""
    return float(np.mean(list(market_ndcg(scorer, arrays, sample).values())))


def _block(arrays: MarketArrays, sample: pa.Table, market: int, rows: NDArray[np.intp]) -> _Block:
    lists = sample["negatives"].combine_chunks().take(pa.array(rows))
    lengths = lists.value_lengths().to_numpy().astype(np.int64)
    items = np.concatenate([sample["positive"].to_numpy()[rows], lists.flatten().to_numpy()])
    distinct, place = np.unique(local_indices(arrays, market, items), return_inverse=True)
    rivals = np.arange(1 + lengths.max())[None, :] <= lengths[:, None]
    rivals[:, 0] = False
    columns = np.zeros(rivals.shape, np.int64)
    columns[:, 0] = place[: len(rows)]
    columns[rivals] = place[len(rows) :]
    slots = torch.from_numpy(arrays.slot_offsets[market] + distinct)
    return _Block(market, rows, slots, columns, rivals)


def _hash(market: NDArray[np.int32], user: NDArray[np.int32], seed: int) -> NDArray[np.uint64]:
    """SplitMix64 of (market, user, seed): distinct for distinct users."""
    mixed = (market.astype(np.uint64) << np.uint64(32)) + user.astype(np.uint64)
    mixed += np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
