"""The model as it serves: ranked lists for users of all markets, from a folder of mapped arrays. No Spark, no torch.

Who asks decides what answers, best first:
    known          U-Loca and the train history, with the history of the request added                        eq. 11
    from_history   the history of the request alone: the mean of (B V)_i over it, no retraining               eq. 11
    popular        the market's train counts, where no history says anything
    unknown_market V-Glob and B-Glob over the catalogue in `only`: what is known of a market before its first shopper
A list holds items of the market only, those of `only` where it is given, none of the history and none of `exclude`;
all of that is settled before the best are taken, so a list is shorter than k only where there are no more items.

Cost of a list: I d for I items of the market, and h I for a market with a linear part. Memory: CELLS scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from m3rec_spark.data.arrays import MarketArrays
from m3rec_spark.errors import UsageError
from m3rec_spark.ranking.explain import Shares, Shoppers, shares
from m3rec_spark.ranking.ids import Ids
from m3rec_spark.ranking.scorers import M3RecScorer, unit
from m3rec_spark.ranking.topk import top_k
from m3rec_spark.similarity.b_glob import normalise_rows

MAX_K = 1000  # longer lists are cut to it
MAX_REQUESTS = 10_000  # of one call
CELLS = 1 << 22  # scores held at once
_COUNTED = 3  # history items whose shoppers are counted for a recommended item


@dataclass(frozen=True)
class Request:
    """What is asked for. Ids that nobody knows are passed over; a market may be unknown too."""

    market: str
    user_id: str | None = None
    history: Sequence[str] = ()
    k: int = 10
    exclude: Sequence[str] = ()
    only: Sequence[str] | None = None
    explain: bool = False


@dataclass(frozen=True)
class Reason:
    """Part of a score: what an item of the history adds to it, and who bought both.

    item None: the user's own part. shoppers None: not counted, as only the largest shares' are.
    """

    item: str | None
    share: float
    shoppers: dict[str, int] | None


@dataclass(frozen=True)
class Answer:
    """The list. reasons: for each item, where they were asked for; their shares sum to its score, the largest first."""

    status: str
    items: list[str]
    scores: list[float]
    reasons: list[list[Reason]] | None = None


@dataclass(frozen=True)
class Global:
    """What holds in any market."""

    vectors: NDArray[np.float32]
    """(n, d) V-Glob; zero where an item has none."""
    similarity: sp.csr_matrix
    """(n, n) B-Glob."""


@dataclass(frozen=True)
class Recommender:
    """A registered model, opened."""

    arrays: MarketArrays
    scorer: M3RecScorer
    world: Global
    shoppers: Shoppers
    markets: Ids
    users: Ids
    """Of all markets, by row."""
    items: Ids

    def recommend(self, requests: Sequence[Request]) -> list[Answer]:
        """An answer to every request, in their order.

        Raises:
            UsageError: k below 1, or more than MAX_REQUESTS at once.
        """
        if len(requests) > MAX_REQUESTS:
            many = f"{len(requests):,} requests in one call, {MAX_REQUESTS:,} are allowed"
            raise UsageError(f"{many}: send them in parts")
        for request in requests:
            if request.k < 1:
                raise UsageError(f"k={request.k}: a list has 1 item at least (and {MAX_K} at most)")
        answers: list[Answer | None] = [None] * len(requests)
        groups: dict[int | None, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(self.markets.find(request.market), []).append(number)
        for market, numbers in groups.items():
            size = len(numbers) if market is None else self._block(market)
            for start in range(0, len(numbers), size):
                part = numbers[start : start + size]
                asked = [requests[number] for number in part]
                found = map(self._in_new_market, asked) if market is None else self._in_market(market, asked)
                for number, answer in zip(part, found, strict=True):
                    answers[number] = answer
        return [answer for answer in answers if answer is not None]

    def _block(self, market: int) -> int:
        slots = self.arrays.market_slots(market)
        return int(max(1, CELLS // max(1, slots.stop - slots.start)))

    def _in_market(self, market: int, requests: Sequence[Request]) -> Iterator[Answer]:
        asked = [self._user(market, request) for request in requests]
        slots = self.arrays.market_slots(market)
        history = _rows([user.history for user in asked], slots.stop - slots.start)
        local = np.stack([user.local for user in asked])
        scores = self.scorer.of_histories(self.arrays, market, history, local)
        counts = self.arrays.slot_counts[slots]
        statuses = [_status(user, row) for user, row in zip(asked, scores, strict=True)]
        scores[[status == "popular" for status in statuses]] = counts.astype(np.float32)
        allowed = np.tile(counts > 0, (len(asked), 1))
        for row, (user, request) in enumerate(zip(asked, requests, strict=True)):
            allowed[row, user.history] = False
            allowed[row, self._in_catalogue(market, request.exclude)] = False
            if request.only is not None:
                allowed[row, np.setdiff1d(np.arange(len(counts)), self._in_catalogue(market, request.only))] = False
        widest = min(MAX_K, max(request.k for request in requests))
        lists = top_k(scores, allowed, widest)
        for row, request in enumerate(requests):
            first, last = int(lists.offsets[row]), int(lists.offsets[row + 1])
            mine = slice(first, min(first + request.k, last))
            items, status = lists.items[mine].astype(np.intp), statuses[row]
            reasons = None
            if request.explain:
                user = asked[row]
                reasons = [] if status == "popular" else list(self.reasons(market, user.history, user.local, items))
            outside = [self.items[int(item)] for item in self.arrays.slot_items[slots][items]]
            yield Answer(status, outside, [float(score) for score in lists.scores[mine]], reasons)

    def _user(self, market: int, request: Request) -> _User:
        first, last = (int(end) for end in self.arrays.user_offsets[market : market + 2])
        user = None if request.user_id is None else self.users.part(first, last).find(request.user_id)
        history = self._in_catalogue(market, request.history)
        if user is None:
            return _User(False, history, np.zeros(self.world.vectors.shape[1], np.float32))
        index = np.array([user], np.int32)
        bought = self.arrays.history(market, index).indices
        return _User(
            True, np.union1d(bought, history).astype(np.intp), self.scorer.cosine.local(self.arrays, market, index)[0]
        )

    def _in_catalogue(self, market: int, ids: Sequence[str]) -> NDArray[np.intp]:
        """Local items of those ids that the market sells, ascending and distinct."""
        own = self.arrays.slot_items[self.arrays.market_slots(market)]
        found = self._known(ids)
        return np.searchsorted(own, found[np.isin(found, own)])

    def _known(self, ids: Sequence[str]) -> NDArray[np.int64]:
        """Global items, ascending and distinct."""
        return np.unique(np.array([item for item in map(self.items.find, ids) if item is not None], np.int64))

    def reasons(
        self, market: int, history: NDArray[np.intp], local: NDArray[np.float32], items: NDArray[np.intp]
    ) -> Iterator[list[Reason]]:
        """Reasons for each of the local `items`, for a user with this history (local items) and U-Loca."""
        parts = shares(self.scorer, self.arrays, market, history, local, items)
        own = self.arrays.slot_items[self.arrays.market_slots(market)]
        yield from self.told(parts, own[history], own[items])

    def told(
        self, parts: Shares, history: NDArray[np.int32], items: NDArray[np.int32], counted: int = _COUNTED
    ) -> Iterator[list[Reason]]:
        """Reasons for each of the global `items`: the largest shares of the history first, the user's own part last."""
        for row, item in enumerate(items):
            by_share = np.argsort(-parts.history[row], kind="stable")
            named = [
                Reason(
                    self.items[int(history[place])],
                    float(parts.history[row, place]),
                    self.bought_both(int(history[place]), int(item)) if rank < counted else None,
                )
                for rank, place in enumerate(by_share)
            ]
            yield [*named, Reason(None, float(parts.local[row]), None)]

    def bought_both(self, item: int, other: int) -> dict[str, int]:
        """Market id -> shoppers there who bought both global items."""
        counts = self.shoppers.together(self.arrays, item, other)
        return {self.markets[market]: count for market, count in counts.items()}

    def _in_new_market(self, request: Request) -> Answer:
        """By V-Glob and B-Glob over the catalogue; nothing where none is given, as nobody knows what is sold there."""
        catalogue, history = self._known(request.only or ()), self._known(request.history)
        rows = normalise_rows(self.world.similarity[history][:, catalogue].tocsr())
        vectors = self.world.vectors[catalogue].astype(np.float64)
        mean = np.asarray(rows.sum(axis=0)).ravel() @ vectors
        scores = (unit(vectors) @ unit(mean[None])[0]).astype(np.float32)
        if not scores.any():  # no history that says anything: the train counts of all markets
            scores = np.bincount(self.arrays.slot_items, self.arrays.slot_counts, self.arrays.n_items)[catalogue]
        allowed = ~np.isin(catalogue, np.union1d(history, self._known(request.exclude)))
        lists = top_k(scores[None].astype(np.float32), allowed[None], min(request.k, MAX_K))
        items = [self.items[int(item)] for item in catalogue[lists.items]]
        return Answer("unknown_market", items, [float(s) for s in lists.scores], [] if request.explain else None)


@dataclass(frozen=True)
class _User:
    known: bool
    history: NDArray[np.intp]
    """Local items, ascending and distinct."""
    local: NDArray[np.float32]
    """(d,) U-Loca, 0 where training did not know the user."""


def _status(user: _User, scores: NDArray[np.float32]) -> str:
    if user.known:
        return "known"
    return "from_history" if scores.any() else "popular"


def _rows(histories: Sequence[NDArray[np.intp]], n_items: int) -> sp.csr_matrix:
    """(B, I) float32 ones."""
    indptr = np.concatenate([[0], np.cumsum([len(history) for history in histories])])
    indices = np.concatenate(histories)
    return sp.csr_matrix((np.ones(len(indices), np.float32), indices, indptr), shape=(len(histories), n_items))


def reasons_as_json(answer: Answer) -> list[list[str]]:
    """Of each item of an answer `as_json`."""
    return [as_json(reasons) for reasons in answer.reasons or []]


def as_json(reasons: list[Reason]) -> list[str]:
    """A JSON object for each reason, as the table `recommendations` and the scoring server carry them."""
    return [json.dumps(asdict(one), ensure_ascii=False) for one in reasons]
