"""What is served, on a small random shop: markets a (13 users, items 15-29), b (40 users, items 0-24), ü (2 users)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_workspace import publish_served

from m3rec_spark.errors import UsageError
from m3rec_spark.ranking import recommender as module
from m3rec_spark.ranking.block_lists import block_lists
from m3rec_spark.ranking.bundle import open_places
from m3rec_spark.ranking.pack import lay_out
from m3rec_spark.ranking.recommender import MAX_K, MAX_REQUESTS, Recommender, Request


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    root = tmp_path_factory.mktemp("served")
    workspace = publish_served(root / "w")
    (root / "places").mkdir()
    return open_places(lay_out(workspace, root / "places"))


def bought(served: Recommender, market: str, user: str) -> list[str]:
    where = served.markets.find(market)
    first, last = (int(end) for end in served.arrays.user_offsets[where : where + 2])
    row = first + served.users.part(first, last).find(user)
    history = served.arrays.items[served.arrays.indptr[row] : served.arrays.indptr[row + 1]]
    return [served.items[int(item)] for item in history]


def sold(served: Recommender, market: str) -> set[str]:
    slots = served.arrays.market_slots(served.markets.find(market))
    counts = served.arrays.slot_counts[slots]
    return {served.items[int(item)] for item in served.arrays.slot_items[slots][counts > 0]}


def test_known_users_get_the_lists_of_the_batch(served: Recommender) -> None:
    for market, name in enumerate(served.markets):
        first, last = (int(end) for end in served.arrays.user_offsets[market : market + 2])
        users = np.arange(last - first, dtype=np.int32)
        lists = block_lists(served.scorer, served.arrays, market, users, 5)
        answers = served.recommend([Request(name, served.users[first + int(user)], k=5) for user in users])
        own = served.arrays.slot_items[served.arrays.market_slots(market)]
        for user, answer in enumerate(answers):
            mine = slice(lists.offsets[user], lists.offsets[user + 1])
            assert answer.items == [served.items[int(item)] for item in own[lists.items[mine]]]
            assert answer.scores == pytest.approx(lists.scores[mine].tolist(), abs=0)
            assert answer.status == "known"


def test_lists_hold_what_the_market_sells_and_the_user_has_not(served: Recommender) -> None:
    for market in served.markets:
        answer = served.recommend([Request(market, "u0", k=MAX_K)])[0]
        assert set(answer.items) == sold(served, market) - set(bought(served, market, "u0"))
        assert answer.scores == sorted(answer.scores, reverse=True)


def test_an_unknown_user_is_his_history(served: Recommender) -> None:
    """The mean of (B V)_i, by hand, over the items that have one; items of other markets are passed over."""
    history = [*sorted(sold(served, "a"))[:3], "i 0", "no such item"]
    answer = served.recommend([Request("a", "new here", history, k=MAX_K)])[0]
    assert answer.status == "from_history"
    assert set(answer.items) == sold(served, "a") - set(history)
    places = [served.items.find(item) for item in history[:3]]
    slots = served.arrays.market_slots(0)
    own = served.arrays.slot_items[slots]
    local = np.searchsorted(own, places)
    folder = Path(served.scorer.cosine.folder)
    items, parts, weights = (
        np.load(folder / f"{name}.npy")[slots].astype(float)
        for name in ("item_vectors", "history_vectors", "history_weights")
    )
    u = parts[local].sum(axis=0) / weights[local].sum()
    cosines = items @ u / np.linalg.norm(items, axis=1) / np.linalg.norm(u)
    block = np.concatenate([np.load(f) for f in sorted(Path(served.scorer.ease.folder, "market-00000").glob("*.npy"))])  # type: ignore[union-attr]
    expected = cosines + 0.4 * block[local].sum(axis=0)
    by_item = dict(zip(answer.items, answer.scores, strict=True))
    for place, item in enumerate(own):
        name = served.items[int(item)]
        if name in by_item:
            assert by_item[name] == pytest.approx(expected[place], abs=1e-5)


def test_a_history_sent_along_counts_for_a_known_user(served: Recommender) -> None:
    plain, more, same = served.recommend(
        [
            Request("b", "u1", k=5),
            Request("b", "u1", ["i 3", "i 4"], k=5),
            Request("b", "u1", bought(served, "b", "u1"), k=5),
        ]
    )
    assert more.status == "known"
    assert not {"i 3", "i 4"} & set(more.items)
    assert more.scores != plain.scores
    assert same == plain


def test_without_history_the_market_s_popularity_decides(served: Recommender) -> None:
    answer = served.recommend([Request("b", k=MAX_K)])[0]
    slots = served.arrays.market_slots(1)
    own = [served.items[int(item)] for item in served.arrays.slot_items[slots]]
    counts = dict(zip(own, served.arrays.slot_counts[slots].tolist(), strict=True))
    assert answer.status == "popular"
    assert answer.items == sorted((i for i in counts if counts[i]), key=lambda i: (-counts[i], i.encode()))
    assert answer.scores == [counts[item] for item in answer.items]


def test_exclude_and_only_are_settled_before_the_best_are_taken(served: Recommender) -> None:
    whole = served.recommend([Request("b", "u2", k=MAX_K)])[0].items
    without, few, both, none = served.recommend(
        [
            Request("b", "u2", k=3, exclude=[*whole[:2], "i 29", "never heard of"]),
            Request("b", "u2", k=3, only=[whole[9], whole[4], "i 29"]),
            Request("b", "u2", k=3, only=whole[:6], exclude=whole[:5]),
            Request("b", "u2", k=3, only=[]),
        ]
    )
    assert without.items == whole[2:5]
    assert few.items == [whole[4], whole[9]]
    assert both.items == [whole[5]]
    assert none.items == []


def test_a_new_market_is_served_from_what_holds_everywhere(served: Recommender) -> None:
    """V-Glob and B-Glob over the catalogue: the mean of B's rows, normalised there, times V-Glob."""
    catalogue, history = [f"i {k}" for k in range(5, 20)], ["i 2", "i 7", "i 29"]
    answer = served.recommend([Request("nowhere", history=history, only=catalogue, k=MAX_K)])[0]
    assert answer.status == "unknown_market"
    assert set(answer.items) == set(catalogue) - set(history)
    rows = [served.items.find(item) for item in history]
    columns = sorted(served.items.find(item) for item in catalogue)  # type: ignore[type-var]
    B = served.world.similarity.toarray()[np.ix_(rows, columns)]
    B = B / np.maximum(B.sum(axis=1, keepdims=True), 1e-30)
    V = np.asarray(served.world.vectors)[columns].astype(float)
    u = B.sum(axis=0) @ V
    expected = V @ u / np.maximum(np.linalg.norm(V, axis=1), 1e-30) / np.linalg.norm(u)
    by_item = dict(zip(answer.items, answer.scores, strict=True))
    for place, column in enumerate(columns):
        if served.items[column] in by_item:
            assert by_item[served.items[column]] == pytest.approx(expected[place], abs=1e-6)


def test_a_new_market_without_history_or_catalogue(served: Recommender) -> None:
    catalogue = ["i 16", "i 20", "i 2"]
    popular, silent = served.recommend([Request("nowhere", only=catalogue, k=2), Request("nowhere", "u0")])
    totals = np.bincount(served.arrays.slot_items, served.arrays.slot_counts)
    order = sorted(catalogue, key=lambda item: (-totals[served.items.find(item)], item))
    assert (popular.status, popular.items) == ("unknown_market", order[:2])
    assert (silent.status, silent.items) == ("unknown_market", [])


def test_answers_do_not_depend_on_their_company(served: Recommender, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [Request(m, f"u{k}", k=1 + k % 4, explain=k % 2 == 0) for k in range(30) for m in ("b", "zz", "a", "ü")]
    together = served.recommend(requests)
    assert [served.recommend([request])[0] for request in requests] == together
    monkeypatch.setattr(module, "CELLS", 60)
    assert served.recommend(requests) == together


def test_reasons_sum_to_the_score_and_name_the_shoppers(served: Recommender) -> None:
    answer = served.recommend([Request("b", "u5", k=4, explain=True)])[0]
    assert answer.reasons is not None
    assert len(answer.reasons) == 4
    history = bought(served, "b", "u5")
    for score, item, reasons in zip(answer.scores, answer.items, answer.reasons, strict=True):
        named = [reason for reason in reasons if reason.item is not None]
        assert sorted(one.item for one in named) == sorted(history)  # type: ignore[type-var]
        assert [one.share for one in named] == sorted((one.share for one in named), reverse=True)
        assert reasons[-1].item is None
        assert sum(one.share for one in reasons) == pytest.approx(score, abs=1e-5)
        assert [one.shoppers is not None for one in named] == [rank < 3 for rank in range(len(named))]
        for one in named[:3]:
            one_id, other = served.items.find(one.item), served.items.find(item)  # type: ignore[arg-type]
            counts = served.shoppers.together(served.arrays, one_id, other)  # type: ignore[arg-type]
            assert one.shoppers == {served.markets[market]: count for market, count in counts.items()}
    assert served.recommend([Request("b", k=2, explain=True)])[0].reasons == []


def test_what_is_asked_is_bounded(served: Recommender) -> None:
    for k in (10**12, 2**63 - 1, 10**30):
        first, second = served.recommend([Request("b", "u0", k=k), Request("b", "u1", k=k)])
        assert min(len(first.items), len(second.items)) > 10
    assert served.recommend([Request("b", "\ud800", ["\udfff"])])[0].status == "popular"  # no text at all
    for k in (0, -3):
        with pytest.raises(UsageError, match=f"k={k}: a list has 1 item at least"):
            served.recommend([Request("b", "u0", k=k)])
    with pytest.raises(UsageError, match=r"10,001 requests in one call, 10,000 are allowed"):
        served.recommend([Request("b")] * (MAX_REQUESTS + 1))
    assert served.recommend([]) == []
